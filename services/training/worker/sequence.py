"""The sequence of a run, the same for every task: prepare, train, evaluate, compare with the champion, compress.

What a task does at each step is its `TaskRun`. Here is the order, what is kept over restarts, and the report.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from services.training.adapters.job import Champion, Job
from services.training.domain.report import Example, Metric, Report, Slice, Variant
from services.training.engine.metrics import Measure, Score, compared, measured
from services.training.engine.parallel import Parallel
from services.training.engine.slices import USUAL, cuts, sliced
from services.training.worker.champion import Rows, champion_answers
from services.training.worker.phases import (
    Material,
    Phase,
    Trainable,
    check_stop,
    drop_checkpoints,
    kept,
    material_of,
    precision_warnings,
    shown_examples,
    train_share,
)
from services.training.worker.ranks import Ranks

A = TypeVar("A")
_INPUT_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Builds:
    """The builds of a run, and what its report says of them."""

    variants: tuple[Variant, ...]
    figures: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class TaskRun(ABC, Generic[A]):
    """The steps of one task, called in the order in which they stand here.

    Creating it is the phase "prepare". Rows are records; the answer to a row is a JSON value, and answers are in the
    order of their rows. Every step may be skipped after a restart, when its result was kept.
    """

    ANSWERS_UNTRAINED: ClassVar[bool] = False
    """Whether the base model has answers, too; a fresh classification head has none."""
    MEASURE: ClassVar[Measure]
    """The metric of the task."""

    def __init__(self, job: Job, material: Material, should_stop: Callable[[], bool]) -> None:
        self.job = job
        self.material = material
        self.should_stop = should_stop

    def base_answers(self, rows: Rows) -> list[A]:
        """The base model's answers, where `ANSWERS_UNTRAINED` is true."""
        raise NotImplementedError

    @abstractmethod
    def trainable(self) -> Trainable:
        """The model, adapted by the method, and what it learns."""

    @abstractmethod
    def train(self, ranks: Ranks) -> Mapping[str, float]:
        """Trains what is `trainable` and keeps the merged model in the run's folder, unless it is there.

        Args:
            ranks: the processes that share the training.

        Returns:
            The figures of the training.
        """

    @abstractmethod
    def answers(self, rows: Rows) -> list[A]:
        """The tuned model's answers."""

    def answered(self) -> None:
        """Called after the last answer of the tuned model: the champion is loaded next."""

    def loss(self) -> Metric | None:
        """The tuned model's loss, see `Report.tuned_loss`; called after `answered`."""
        return None

    @abstractmethod
    def champion_answers(self, champion: Champion, folder: Path, rows: Rows) -> list[A]:
        """The answers of another run's model, which lies merged in a folder."""

    @abstractmethod
    def compress(self, tuned: Sequence[A]) -> Builds:
        """Makes the builds and measures each by the runtime that serves it; `tuned` are the answers to the hold-out."""

    @abstractmethod
    def scored(self, rows: Rows, answers: Sequence[A]) -> list[Score]:
        """What the answer to each row counts in `MEASURE`."""

    def quality(self, answers: Sequence[A]) -> Metric:
        """The metric of the tuned model's or a build's answers to the hold-out."""
        return measured(self.MEASURE, self.scored(self.material.holdout, answers))

    def figures(self, tuned: Sequence[A]) -> Mapping[str, float]:
        """More figures about the answers to the hold-out."""
        return {}

    @abstractmethod
    def ranked(self, tuned: Sequence[A], base: Sequence[A] | None) -> list[int]:
        """The rows of the hold-out in an order whose first, last and evenly spread ones are worth showing."""

    @abstractmethod
    def reference(self, row: Mapping[str, str]) -> str:
        """The right answer, as people read it."""

    def shown(self, row: Mapping[str, str], answer: A) -> str:
        """An answer, as people read it."""
        return str(answer)


def run_job(job: Job, should_stop: Callable[[], bool], ranks: Ranks) -> Report:
    """Trains, evaluates and compresses; each result is kept in the run's folder, so that a restarted run reuses it.

    Args:
        job: the run.
        should_stop: whether it was asked to stop.
        ranks: the processes that share its training.

    Returns:
        The report; of a trial only how good the tuned model is.

    Raises:
        Cancelled: `should_stop` returned true.
    """
    phase = Phase(job, "prepare")
    material = material_of(job)
    task = _task_run(job, material, should_stop)
    phase.end()
    check_stop(should_stop)
    holdout, corrections = material.holdout, material.corrections

    def asked(which: str, ask: Callable[[Rows], list[object]]) -> tuple[list[object], list[object]]:
        def of(part: str, rows: Rows) -> list[object]:
            found: list[object] = kept(job.folder / "eval" / f"{which}-{part}.json", lambda: ask(rows) if rows else [])
            return found

        return of("holdout", holdout), of("corrections", corrections)

    trial = job.spec.trial is not None
    with_base = task.ANSWERS_UNTRAINED and not trial
    base, base_corrected = asked("base", task.base_answers) if with_base else (None, None)
    check_stop(should_stop)
    trained = task.train(ranks)
    drop_checkpoints(job)
    tuned, tuned_corrected = asked("tuned", task.answers)
    task.answered()
    check_stop(should_stop)
    if trial:
        return Report(
            tuned=task.quality(tuned),
            figures={**trained, **task.figures(tuned)},
            tuned_loss=task.loss(),
            warnings=precision_warnings(job, material.device),
        )
    champion = champion_answers(job, holdout, corrections, task.champion_answers)
    builds = task.compress(tuned)
    scores = _scores(task, holdout, tuned, base, champion.holdout)
    found = compared(task.MEASURE, *scores)
    slices, unsliced = _sliced(job, task.MEASURE, holdout, scores)

    def example(at: int) -> Example:
        row = holdout[at]
        before = "" if base is None else task.shown(row, base[at])
        text = row["text"][:_INPUT_SHOWN]
        return Example(row["record_id"], text, task.reference(row), before, task.shown(row, tuned[at]))

    return Report(
        tuned=found.tuned,
        base=found.base,
        difference=found.over_base,
        examples=tuple(example(at) for at in shown_examples(task.ranked(tuned, base))),
        variants=builds.variants,
        figures={**trained, **task.figures(tuned), **builds.figures},
        tuned_loss=task.loss(),
        warnings=(*precision_warnings(job, material.device), *builds.warnings, *champion.warnings, *unsliced),
        champion=found.champion,
        over_champion=found.over_champion,
        champion_run=champion.run,
        corrections=compared(
            task.MEASURE, *_scores(task, corrections, tuned_corrected, base_corrected, champion.corrections)
        )
        if corrections
        else None,
        slices=slices,
    )


_Scores = tuple[list[Score], list[Score] | None, list[Score] | None]
"""Of the tuned model, the base model and the champion, on the same rows."""


def _scores(
    task: TaskRun[A], rows: Rows, tuned: Sequence[A], base: Sequence[A] | None, champion: Sequence[A] | None
) -> _Scores:
    others = [None if answers is None else task.scored(rows, answers) for answers in (base, champion)]
    return task.scored(rows, tuned), others[0], others[1]


def _sliced(job: Job, measure: Measure, rows: Rows, scores: _Scores) -> tuple[tuple[Slice, ...], tuple[str, ...]]:
    """The slices of the hold-out, and a warning for each attribute that the spec names and that has none."""
    spec = job.spec
    made = {name: cuts(rows, name, spec.min_slice_examples) for name in spec.slices or USUAL}
    wrong = tuple(
        f"evaluation.slices: {name} has no two slices in the {len(rows):,} records of the hold-out, of which one has "
        f"{spec.min_slice_examples} or more."
        for name in spec.slices
        if not made[name]
    )
    every = [each for found in made.values() for each in found]
    return sliced(measure, every, spec.min_slice_examples, *scores), wrong


def run_rank(job: Job, parallel: Parallel) -> None:
    """What another process than the run's own does: its share of the training.

    Raises:
        Cancelled: the run was asked to stop.
    """
    material, trainable = share_of(job, parallel.rank)
    train_share(job, trainable, material.device, parallel)


def share_of(job: Job, gpu: int) -> tuple[Material, Trainable]:
    """What a process that only trains needs: its device, and the model and what it learns, on GPU number `gpu`."""
    material = material_of(job, gpu)
    return material, _task_run(job, material, lambda: False).trainable()


def _task_run(job: Job, material: Material, should_stop: Callable[[], bool]) -> TaskRun[object]:
    made: TaskRun[object] = import_module(f"services.training.worker.{job.spec.task.kind}").RUN(
        job, material, should_stop
    )
    return made
