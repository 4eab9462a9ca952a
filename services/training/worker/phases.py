"""What the runs of all tasks share: progress of a phase, the training phase, results that survive restarts."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry import trace

from services.kit.errors import DataLossError, TidemillError, UnavailableError
from services.kit.probes import Probes
from services.kit.progress import Progress
from services.kit.retrying import StoppedError, call_with_retries
from services.kit.storage.artifacts import ArtifactStore, digest_folder, local_path
from services.kit.storage.signing import MANIFEST, SIGNATURE, SigningKey
from services.kit.telemetry import schema
from services.training.adapters.base_models import BaseModels
from services.training.adapters.checkpoint_copies import CheckpointCopies
from services.training.adapters.checkpoints import CheckpointFolder
from services.training.adapters.job import Job, write_json, write_loss_curve, write_progress
from services.training.adapters.snapshots import by_weight, check_files, read_corrections, read_rows
from services.training.domain.report import Report, loss_curve
from services.training.domain.training_spec import Precision
from services.training.engine.attention import SHORT, plain_attention
from services.training.engine.loop import Cancelled, Checkpoint, StepProgress, usable_precision
from services.training.engine.parallel import Parallel
from services.training.engine.record_shares import validation_split
from services.training.engine.tasks import Objective
from services.training.worker.ranks import Ranks, Training, trained

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")
logger = logging.getLogger(__name__)
_WRITE_EVERY_S = 0.25
_CURVE_EVERY_S = 2.0
_EXAMPLES = 5
CHECKPOINTS = "checkpoints"
_LOSSES, _FIGURES = Path("eval", "losses.json"), Path("eval", "train.json")
_BITS: Mapping[Precision, float] = {"fp32": 32.0, "bf16": 16.0, "fp16": 16.0}
_ADAPTER, _MERGED, _VARIANTS = "adapter", "merged", "variants"
_STORE_PATIENCE_S = 900.0
_COPY_PATIENCE_S = 60.0
# Otherwise peft asks the hub whether the vocabulary was changed, and stores all embeddings besides the learnt ones.
_ADAPTER_ONLY = {"save_embedding_layers": False}


class Phase:
    """Progress and span of one phase; the progress is written to a file that the service reads."""

    def __init__(self, job: Job, name: str, total: int = 0, unit: str = "") -> None:
        self._job, self._name, self._total, self._unit = job, name, total, unit
        self._began = time.monotonic()
        self._written = 0.0
        self._span = trace.get_tracer(__name__).start_span(f"training {name}", attributes={schema.STAGE: name})
        self.advance(0)

    def advance(self, done: int, figures: Mapping[str, float] | None = None, remaining_s: float | None = None) -> None:
        """Writes the phase's progress, at most a few times per second."""
        now = time.monotonic()
        if 0 < done < self._total and now - self._written < _WRITE_EVERY_S:
            return
        self._written = now
        rate = done / (now - self._began) if done else 0.0
        if remaining_s is None:
            remaining_s = (self._total - done) / rate if rate else 0.0
        moment = datetime.now(UTC)
        progress = Progress(self._name, done, self._total, rate, moment, self._unit, remaining_s, dict(figures or {}))
        write_progress(self._job.folder, progress)

    def end(self) -> float:
        """Ends the phase.

        Returns:
            Duration in seconds.
        """
        self._span.end()
        seconds = time.monotonic() - self._began
        logger.info("%s: %s took %.1f s", self._job.run, self._name, seconds)
        return seconds


@dataclass(frozen=True, slots=True)
class Material:
    """Data and base model of a run; a row is a record's text with its required attributes.

    `holdout` is what the run is measured on; of a trial, training records that it does not learn. `corrections` is
    feedback that was held back; it is measured on and never learnt.
    """

    device: torch.device
    base_folder: Path
    tokenizer: Any
    train: list[dict[str, str]]
    holdout: list[dict[str, str]]
    corrections: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Trainable:
    """A model, the part of it that the method has adapted, and what it learns."""

    model: nn.Module
    adapted: Any
    objective: Objective


def material_of(job: Job, gpu: int = 0) -> Material:
    """Checks the data set, fetches the base model, and reads both.

    Args:
        job: the run.
        gpu: which one this process uses, where there are some and several processes train.

    Raises:
        DataLossError: a file of the data set is damaged.
    """
    import torch
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    spec, snapshot = job.spec, checked_snapshot(job)
    base_folder = BaseModels(job.models_dir, job.downloads_dir).prepare(spec.base_model)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(base_folder), trust_remote_code=False)
    learnt = read_rows(snapshot, "train", spec.learnt)
    if spec.trial is None:
        holdout = read_rows(snapshot, "holdout", [*spec.learnt, *spec.sliced])
        corrections = read_corrections(snapshot, spec.task.learnt)
    else:
        # What decides by its values must not be what the chosen model is measured on: the hold-out stays closed.
        learnt, holdout = validation_split(learnt, spec.trial.validation_share)
        corrections = []
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", gpu) if job.spec.processes > 1 else torch.device("cuda")
        torch.cuda.set_device(device)
    return Material(
        device=device,
        base_folder=base_folder,
        tokenizer=tokenizer,
        train=by_weight(learnt),
        holdout=holdout[: spec.max_eval_examples or len(holdout)],
        corrections=corrections[: spec.max_eval_examples or len(corrections)],
    )


def train_adapted(
    job: Job, trainable: Trainable, device: torch.device, should_stop: Callable[[], bool], ranks: Ranks
) -> None:
    """Trains a model and stores its figures, and the adapter if the method added one."""
    figures = run_training(job, trainable.model, trainable.objective, device, should_stop, ranks)
    kept(job.folder / _FIGURES, lambda: figures)
    adapted = trainable.adapted
    if hasattr(adapted, "get_base_model"):
        kept_folder(job.folder / _ADAPTER, lambda path: adapted.save_pretrained(str(path), **_ADAPTER_ONLY))


def train_share(
    job: Job,
    trainable: Trainable,
    device: torch.device,
    parallel: Parallel,
    on_step: Callable[[StepProgress], None] = lambda _: None,
    on_checkpoint: Callable[[Checkpoint], object] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Training:
    """What another process than the run's own trains; the callbacks are those of rank 0, if that is one, too.

    Raises:
        Cancelled: the run was asked to stop.
    """
    resume = _begun(job, trainable.model, trainable.objective, device)
    if not parallel.rank:
        _warn_of_precision(job, device)
    return trained(
        job,
        trainable.model,
        trainable.objective,
        nullcontext(parallel),
        device=device,
        resume=resume,
        on_step=on_step,
        on_checkpoint=on_checkpoint,
        should_stop=should_stop,
    )


def checked_snapshot(job: Job) -> Path:
    """The folder of the data set, after verifying the digests of its files.

    Raises:
        DataLossError: one of its files is damaged.
    """
    uri = job.spec.dataset_uri
    try:
        check_files(job.snapshot, uri)
    except DataLossError as error:
        if local_path(uri) is not None:
            raise
        logger.warning("the copy of a snapshot is damaged; it is fetched again: %s", error.message)
        shutil.rmtree(job.snapshot, ignore_errors=True)
        check_files(ArtifactStore(uri).fetch_folder(uri, job.snapshot.parent), uri)
    return job.snapshot


def kept(path: Path, compute: Callable[[], Any]) -> Any:
    """The JSON value in a file; computed and stored first if missing, so that a restarted run reuses it."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, compute())
    return json.loads(path.read_text())


def kept_folder(path: Path, make: Callable[[Path], None]) -> Path:
    """A folder; created first if missing. An incomplete one left by a kill is created again."""
    if not path.is_dir():
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            make(partial)
            partial.rename(path)
        except BaseException:
            # An incomplete folder must not keep a full disk full.
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return path


def precision_warnings(job: Job, device: torch.device) -> tuple[str, ...]:
    """A warning if the device that trains, or has trained on a cluster, lacks the requested precision."""
    wanted = job.spec.optimization.precision
    used, where = usable_precision(wanted, device), f"this {device.type}"
    if job.cluster is not None:
        bits = json.loads((job.folder / _FIGURES).read_text())["precision_bits"]
        used, where = "fp32" if bits == _BITS["fp32"] else wanted, "the cluster"
    if wanted in (used, "auto"):
        return ()
    return (f"optimization.precision: computed in {used}, for {where} has no {wanted}.",)


def _warn_of_precision(job: Job, device: torch.device) -> None:
    for warning in precision_warnings(job, device):
        logger.warning("%s: %s", job.run, warning)


def _begun(job: Job, model: nn.Module, objective: Objective, device: torch.device) -> Checkpoint | None:
    """Prepares a model for its training, which begins at the checkpoint that is returned."""
    if device.type == "cpu" and max(objective.lengths) <= SHORT:
        plain_attention(model)
    return CheckpointFolder(job.folder / CHECKPOINTS).newest()


def run_training(
    job: Job,
    model: nn.Module,
    objective: Objective,
    device: torch.device,
    should_stop: Callable[[], bool],
    ranks: Ranks,
) -> dict[str, float]:
    """The training phase, beginning at the newest checkpoint; see `fetch_checkpoint`.

    Returns:
        Figures for the report.
    """
    checkpoints, copies = CheckpointFolder(job.folder / CHECKPOINTS), _copies(job)
    resume = _begun(job, model, objective, device)
    if resume is not None:
        logger.info("%s resumes from step %d", job.run, resume.step)
    total = job.spec.optimization.total_steps(len(objective.lengths))
    if job.cluster is None:
        _warn_of_precision(job, device)
    phase = Phase(job, "train", total, "steps")
    losses = list(resume.losses) if resume is not None else []
    shown = float("-inf")

    def on_step(progress: StepProgress) -> None:
        nonlocal shown
        losses.append(progress.loss)
        if progress.step == total or time.monotonic() - shown >= _CURVE_EVERY_S:
            shown = time.monotonic()
            write_loss_curve(job.folder, loss_curve(losses))
        figures = {
            "loss": progress.loss,
            "tokens_per_second": progress.tokens_per_second,
            "learning_rate": progress.learning_rate,
        }
        phase.advance(progress.step, figures, progress.remaining_s)

    def on_checkpoint(checkpoint: Checkpoint) -> None:
        folder = checkpoints.save(checkpoint)
        if copies is not None:
            copies.copy(folder)

    try:
        trained = ranks.train(
            model,
            objective,
            device=device,
            resume=resume,
            on_step=on_step,
            on_checkpoint=on_checkpoint,
            should_stop=should_stop,
        )
    finally:
        # A run that was asked to stop may continue on another machine.
        if copies is not None and not copies.finish(_COPY_PATIENCE_S):
            logger.warning("%s: its newest checkpoint was not copied within %.0f s", job.run, _COPY_PATIENCE_S)
    outcome, seconds = trained.outcome, phase.end()
    kept(job.folder / _LOSSES, lambda: outcome.losses)
    tail = outcome.losses[-10:]
    return {
        "steps": float(total),
        "precision_bits": _BITS[trained.precision],
        "first_loss": outcome.losses[0],
        "final_loss": sum(tail) / len(tail),
        "train_seconds": seconds,
        "train_tokens_per_second": outcome.tokens / outcome.seconds if outcome.tokens else 0.0,
        "train_examples": float(len(objective.lengths)),
        "trainable_parameters": float(sum(p.numel() for p in model.parameters() if p.requires_grad)),
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "peak_memory_bytes": float(trained.memory_peak),
        "memory_before_training_bytes": float(trained.memory_before),
        **({"processes": float(ranks.processes)} if ranks.processes > 1 else {}),
    }


def _copies(job: Job) -> CheckpointCopies | None:
    """Those of the run's checkpoints; None where they are in the store already, and of a trial."""
    if local_path(job.uri) is not None or job.spec.trial is not None:
        return None
    return CheckpointCopies(job.folder / CHECKPOINTS, f"{job.uri}/{CHECKPOINTS}")


def fetch_checkpoint(job: Job, stop: threading.Event) -> None:
    """Fetches the newest checkpoint of a run that was begun on another machine, if the store has one.

    Raises:
        Cancelled: `stop` was set.
        UnavailableError: the store did not answer for a quarter of an hour.
    """
    copies = _copies(job)
    if copies is None or (job.folder / _MERGED).is_dir():
        return
    if _patiently(copies.fetch, f"the newest checkpoint of {job.run}", stop):
        logger.info("%s continues from a checkpoint of another machine", job.run)


def _patiently(do: Callable[[], T], what: str, stop: threading.Event) -> T:
    """Calls the artefact store, which may be unavailable for minutes; hours of training must not be lost by that.

    Raises:
        Cancelled: `stop` was set.
        UnavailableError: the store did not answer for a quarter of an hour.
    """
    try:
        return call_with_retries(
            do, what, stop, should_retry=lambda error: isinstance(error, UnavailableError), patience_s=_STORE_PATIENCE_S
        )
    except StoppedError:
        raise Cancelled from None


def with_loss_curve(job: Job, report: Report) -> Report:
    """The report with the loss of the run's training."""
    return replace(report, loss_curve=loss_curve(kept(job.folder / _LOSSES, list)))


def store(job: Job, report: Report, stop: threading.Event) -> Report:
    """Copies the model and its builds to the artefact store, if that is not this folder; of a trial nothing is needed.

    Returns:
        The report, with the builds' locations in the store.

    Raises:
        Cancelled: `stop` was set.
        UnavailableError: the store did not answer for a quarter of an hour.
    """
    if local_path(job.uri) is not None or job.spec.trial is not None:
        return report
    artifacts = ArtifactStore(job.uri)
    folders = [job.folder / _MERGED, *(job.folder / _VARIANTS / variant.precision for variant in report.variants)]
    phase = Phase(job, "store", len(folders), "folders")
    for number, folder in enumerate(folders, 1):
        target = artifacts.uri(*folder.relative_to(job.folder).parts)
        _patiently(partial(artifacts.put_folder, folder, target), f"the copy of {job.run} to the artefact store", stop)
        phase.advance(number)
    phase.end()
    stored = [
        replace(variant, uri=artifacts.uri(*folder.relative_to(job.folder).parts))
        for variant, folder in zip(report.variants, folders[1:], strict=True)
    ]
    return replace(report, variants=tuple(stored))


def drop_stored(job: Job) -> None:
    """Deletes local copies once the report names those in the artefact store; of a trial the only ones.

    The copies of checkpoints in the store are not needed any more, either.
    """
    copies = _copies(job)
    if copies is not None:
        try:
            copies.discard()
        except TidemillError as error:
            logger.warning("%s: the copies of its checkpoints stay in the store: %s", job.run, error.message)
    if local_path(job.uri) is None or job.spec.trial is not None:
        for name in (_MERGED, _VARIANTS, *((_ADAPTER,) if job.spec.trial is not None else ())):
            shutil.rmtree(job.folder / name, ignore_errors=True)


def drop_checkpoints(job: Job) -> None:
    """Deletes the checkpoints once the tuned model is stored; those of full fine-tuning are three times its size."""
    shutil.rmtree(job.folder / CHECKPOINTS, ignore_errors=True)


def seal(job: Job, folder: Path, manifest: Mapping[str, Any], probes: Sequence[str] | None = None) -> tuple[str, int]:
    """Adds `tidemill.json` to a finished build and signs all of it.

    Args:
        job: whose key signs.
        folder: the build.
        manifest: what serving has to know of it.
        probes: its answers to `services.kit.probes.TEXTS`; None of a build that an earlier release has measured.

    Returns:
        sha256 over the build's files without manifest and signature, and the size of all files in bytes.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    digest = digest_folder(folder, without=[SIGNATURE])
    asked = Probes.of(probes).written() if probes is not None else {}
    write_json(folder / MANIFEST, {**manifest, **asked, "digest": digest})
    SigningKey(job.signing_key, job.trusted_keys).sign(folder)
    return digest, sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def shown_examples(order: Sequence[int]) -> list[int]:
    """Five of the ordered example indices, evenly spread from first to last; all if there are at most five."""
    return [order[i * (len(order) - 1) // (_EXAMPLES - 1)] for i in range(min(_EXAMPLES, len(order)))]


def check_stop(should_stop: Callable[[], bool]) -> None:
    """Ends the run between two phases if it was asked to stop.

    Raises:
        Cancelled: it was asked to stop.
    """
    if should_stop():
        raise Cancelled
