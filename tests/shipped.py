"""The pipeline files and the trainings that are shipped."""

from __future__ import annotations

from pathlib import Path

from gateway.cli.pipeline_file import load_training
from services.training.domain.training_spec import TrainingSpec
from services.training.entrypoints.mapping import spec_from

ROOT = Path(__file__).parents[1]
TRAININGS = sorted((ROOT / "pipelines" / "training").rglob("*.yaml"))
"""Files with a training only, each for the pipeline that its header names."""
PIPELINES = sorted(
    path for folder in ("pipelines", "examples") for path in (ROOT / folder).rglob("*.yaml") if path not in TRAININGS
)
"""Files of pipelines, and of data sets alone."""
TRAINED = [path for path in (*PIPELINES, *TRAININGS) if path in TRAININGS or "\ntraining:" in path.read_text("utf-8")]
"""All that something can be trained by."""


def spec_of(path: Path) -> TrainingSpec:
    """What a file of `TRAINED` trains, as the service reads it."""
    return spec_from(load_training(path).spec)
