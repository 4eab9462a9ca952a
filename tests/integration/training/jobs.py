"""A run's worker in this process: without the service, its bus and its database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.kit.storage.signing import SigningKey
from services.training.adapters.job import Champion, Job
from services.training.domain.report import Report
from services.training.domain.tasks import GenerationTask, Task, TextEmbeddingTask, TokenClassificationTask, VariantName
from services.training.domain.training_spec import Method, Optimization, TrainingSpec
from services.training.engine.methods.full import Full
from services.training.worker.ranks import Ranks
from services.training.worker.sequence import run_job, run_rank


def writer_spec(model: Path, snapshot: Path, method: Method, **changes: Any) -> TrainingSpec:
    """A small run that writes text; `changes` replace fields of the spec."""
    spec = TrainingSpec(
        model_name="headlines",
        base_model=str(model),
        dataset_name="datasets/reviews/versions/1",
        dataset_uri=snapshot.as_uri(),
        dataset_digest="0" * 64,
        task=GenerationTask("Write a headline.\n\n{text}", "headline", 96, 12),
        method=method,
        optimization=Optimization(max_steps=6, batch_size=8, learning_rate=0.02, checkpoint_every=3),
        variants=_builds("fp32"),
        max_eval_examples=8,
    )
    return replace(spec, **changes)


def assert_built_as_trained(report: Report) -> None:
    """The fp32 build of a writer is the trained model: as sure of the references, and with the same answers.

    One answer of eight may differ: after a few steps two words can be as likely, and then rounding decides.
    """
    increase = report.variants[0].loss_increase
    assert increase is not None
    assert abs(increase.value) < 0.005
    assert report.figures["same_answer_as_merged_fp32"] >= 7 / 8


def marker_spec(model: Path, snapshot: Path) -> TrainingSpec:
    """A small run that finds the marked words of `write_marked`."""
    return TrainingSpec(
        model_name="marker",
        base_model=str(model),
        dataset_name="datasets/marked/versions/1",
        dataset_uri=snapshot.as_uri(),
        dataset_digest="0" * 64,
        task=TokenClassificationTask("spans", 32),
        method=Full(),
        optimization=Optimization(max_steps=40, batch_size=16, learning_rate=0.01, checkpoint_every=20),
        variants=_builds("fp32", "int8"),
    )


def embedding_spec(model: Path, snapshot: Path, **changes: Any) -> TrainingSpec:
    """A small run that finds the titles of `write_titled`; `changes` replace fields of the spec."""
    spec = TrainingSpec(
        model_name="titles",
        base_model=str(model),
        dataset_name="datasets/titled/versions/1",
        dataset_uri=snapshot.as_uri(),
        dataset_digest="0" * 64,
        task=TextEmbeddingTask("title", 32),
        method=Full(),
        optimization=Optimization(max_steps=40, batch_size=16, learning_rate=0.003, checkpoint_every=20),
        variants=_builds("fp32", "int8"),
    )
    return replace(spec, **changes)


def labeller_spec(model: Path, snapshot: Path, task: Task, **changes: Any) -> TrainingSpec:
    """A small run that labels the texts of `write_tagged` or `write_rated`; `changes` replace fields of the spec."""
    spec = TrainingSpec(
        model_name="labeller",
        base_model=str(model),
        dataset_name="datasets/labelled/versions/1",
        dataset_uri=snapshot.as_uri(),
        dataset_digest="0" * 64,
        task=task,
        method=Full(),
        optimization=Optimization(max_steps=200, batch_size=16, learning_rate=0.005, checkpoint_every=100),
        variants=_builds("fp32", "int8"),
    )
    return replace(spec, **changes)


def _builds(*names: VariantName) -> tuple[VariantName, ...]:
    return names


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that has ended."""

    folder: Path
    spec: TrainingSpec
    report: Report


def work(
    folder: Path,
    spec: TrainingSpec,
    champion: Champion | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Runs the worker of a spec to its end, in its folder; it is compared with the champion, if one is given.

    Raises:
        Cancelled: `should_stop` returned true.
    """
    key = SigningKey(folder / "keys" / "signing.pem", folder / "keys" / "trusted")
    key.ensure()
    job = Job(
        run="runs/test",
        folder=folder,
        uri=folder.as_uri(),
        snapshot=Path(spec.dataset_uri.removeprefix("file://")),
        models_dir=folder / "models",
        downloads_dir=folder / "downloads",
        spec=spec,
        threads=1,
        signing_key=folder / "keys" / "signing.pem",
        trusted_keys=folder / "keys" / "trusted",
        champion=champion,
    )
    return run_job(job, should_stop, Ranks(job, run_rank))


def train(folder: Path, spec: TrainingSpec) -> Trained:
    """Runs the worker of a spec in a folder, see `work`."""
    return Trained(folder, spec, work(folder, spec))
