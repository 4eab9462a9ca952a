"""Pipeline: owns the cycles of pipelines and the feedback on answers."""
