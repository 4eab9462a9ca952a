"""Serves published models: owns the Triton model repository, predicts, generates."""
