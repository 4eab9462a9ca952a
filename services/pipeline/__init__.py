"""Pipeline: owns the cycles of a loop and the feedback on its answers."""
