"""Every shipped pipeline and training, from its file to a report: with a small base model, small data and few steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.training.domain.tasks import MultiLabelClassificationTask, OrdinalClassificationTask, Task
from services.training.domain.training_spec import TrainingSpec
from tests.integration.training.bases import (
    STARS,
    make_encoder,
    make_writer,
    write_marked,
    write_preferences,
    write_rated,
    write_reviews,
    write_tagged,
    write_titled,
)
from tests.integration.training.jobs import work
from tests.shipped import ROOT, TRAINED, spec_of

_STEPS = 3
_DATA: Mapping[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "dpo": (write_preferences, ("chosen", "rejected")),
    "kto": (write_preferences, ("answer", "rating")),
    "generation": (write_reviews, ("headline",)),
    "text_classification": (write_reviews, ("label",)),
    "token_classification": (write_marked, ("spans",)),
    "text_embedding": (write_titled, ("title", "other")),
    "multi_label_classification": (write_tagged, ("labels",)),
    "ordinal_classification": (write_rated, ("stars",)),
}
"""What teaches a method, or else a task: a snapshot, and its columns in the order of `TrainingSpec.learnt`."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A small model of each architecture."""
    folder = tmp_path_factory.mktemp("models")
    return {"causal": make_writer(folder / "llama"), "encoder": make_encoder(folder / "bert")}


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_training_runs(path: Path, bases: Mapping[str, Path], tmp_path: Path) -> None:
    spec = _small(spec_of(path), bases, tmp_path / "snapshot")
    report = work(tmp_path / "run", spec)
    assert report.figures["steps"] == _STEPS
    assert 0 < report.figures["trainable_parameters"] <= report.figures["parameters"]
    assert all(math.isfinite(value) for value in (report.figures["final_loss"], report.tuned.value))
    assert tuple(variant.precision for variant in report.variants) == spec.variants
    assert all((tmp_path / "run" / "variants" / name).is_dir() for name in spec.variants)


def _small(spec: TrainingSpec, bases: Mapping[str, Path], snapshot: Path) -> TrainingSpec:
    """The same task, method, builds and options, on what is small; its columns have the names of the spec."""
    write, columns = _DATA.get(spec.method.kind) or _DATA[spec.task.kind]
    write(snapshot)
    names = dict(zip(columns, (column for column, _ in spec.learnt), strict=False))
    for part in ("train", "holdout"):
        file = snapshot / f"{part}.parquet"
        rows: list[dict[str, str]] = pq.read_table(file).to_pylist()
        renamed = [{names.get(column, column): _as(spec.task, column, row[column]) for column in row} for row in rows]
        pq.write_table(pa.Table.from_pylist(renamed), file)
    options = spec.optimization
    narrow: dict[str, Any] = {"dimensions": (8,)} if getattr(spec.task, "dimensions", ()) else {}
    return replace(
        spec,
        base_model=str(bases[spec.task.ARCHITECTURE]),
        dataset_name="datasets/small/versions/1",
        dataset_uri=snapshot.as_uri(),
        dataset_digest="0" * 64,
        task=replace(spec.task, **narrow),
        optimization=replace(options, max_steps=_STEPS, epochs=0, batch_size=min(options.batch_size, 8)),
        max_eval_examples=8,
    )


def _as(task: Task, column: str, value: str) -> str:
    """A value of the small data as the task has it."""
    if isinstance(task, OrdinalClassificationTask) and column == "stars":
        return task.labels[STARS.index(value) * len(task.labels) // len(STARS)]
    if isinstance(task, MultiLabelClassificationTask) and column == "labels" and task.separator:
        return task.separator.join(part.strip(' []"') for part in value.split(","))
    return value
