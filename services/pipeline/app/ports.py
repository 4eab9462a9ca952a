"""What the pipeline's use cases need from outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from services.kit.failure import Failure
from services.pipeline.domain.capture import Capture, CapturedAnswer, CapturePolicy
from services.pipeline.domain.cycle import Cycle, Json
from services.pipeline.domain.feedback import Answer, Feedback
from services.pipeline.domain.learning import Lesson
from services.pipeline.domain.rollout_plan import RolloutPlan


class CycleStore(Protocol):
    """Keeps cycles; each call is one transaction."""

    def create(self, cycle: Cycle) -> Cycle:
        """Stores a new cycle, or answers with the one of the same request.

        Raises:
            AlreadyExistsError: another cycle of the pipeline is running.
        """
        ...

    def get(self, name: str) -> Cycle | None:
        """The cycle."""
        ...

    def by_request(self, request_id: str) -> Cycle | None:
        """The cycle that a request created."""
        ...

    def at_work(self, pipeline: str) -> Cycle | None:
        """The pipeline's cycle that has not ended."""
        ...

    def page(self, pipeline: str, before: str, limit: int) -> Sequence[Cycle]:
        """Cycles of a pipeline (of all if empty) with ids before the given one, newest first."""
        ...

    def learnt(self, pipeline: str) -> Cycle | None:
        """The newest cycle of a pipeline that has a data set and has neither failed nor been cancelled."""
        ...

    def changed(self, pipeline: str, since: datetime) -> Sequence[Cycle]:
        """Cycles of a pipeline that were at work after a moment, newest first."""
        ...

    def unfinished(self) -> Sequence[Cycle]:
        """Running cycles, and ended ones whose event is pending; oldest first."""
        ...

    def update(self, cycle: Cycle) -> None:
        """Replaces all of a cycle but its request to be cancelled."""
        ...

    def request_cancel(self, name: str) -> None:
        """Asks that a cycle be cancelled."""
        ...


class FeedbackStore(Protocol):
    """Keeps feedback and which model gave which answer; each call is one transaction."""

    def record(self, items: Sequence[Feedback], sent: Sequence[datetime] | None = None) -> Sequence[Feedback]:
        """Stores all or none, each with its answer's model version, if known; for a repeat, the one of its request.

        Args:
            items: the judgements.
            sent: when each was sent, of those that may have been on their way for long. They are left out if their
                author was erased since, or their answer was.

        Raises:
            InvalidArgumentError: a request id was used for another judgement.
            NotFoundError: an answer was erased, and `sent` is None.
        """
        ...

    def versions(self, names: Sequence[str]) -> Mapping[str, str]:
        """The model versions that gave answers, as far as they are known."""
        ...

    def page(self, model: str, before: str, limit: int) -> Sequence[Feedback]:
        """Feedback on a model (on all when empty) with ids before the given one, newest first."""
        ...

    def unannounced(self, limit: int) -> Sequence[Feedback]:
        """Feedback whose event is pending, oldest first."""
        ...

    def mark_announced(self, feedback_ids: Sequence[str]) -> None:
        """Forgets that they are to be published."""
        ...

    def remember(self, answers: Sequence[Answer]) -> None:
        """Keeps which version gave each answer and completes the feedback on it; a repeat changes nothing."""
        ...

    def forget(self, before: datetime) -> int:
        """Drops answers given before a time; feedback stays. Returns how many."""
        ...


class CaptureStore(Protocol):
    """Keeps captured answers and what feedback on them teaches; each call is one transaction."""

    def put_policy(self, model: str, pipeline: str, capture: Capture | None, now: datetime) -> CapturePolicy | None:
        """Sets what is kept of a model, or ends it (None), which only the pipeline that set it does.

        Returns:
            The rule before.
        """
        ...

    def policies(self) -> Sequence[CapturePolicy]:
        """The rules of all models whose answers are kept, by model."""
        ...

    def user_key(self) -> str:
        """The key of the pseudonyms of users; see `services.kit.pseudonyms`."""
        ...

    def keep(self, answers: Sequence[CapturedAnswer]) -> int:
        """Stores answers of models with a rule; a repeat changes nothing.

        Returns:
            How many are left out: they have no rule, or were erased, or were asked by a user who was erased since.
        """
        ...

    def answers(self, names: Sequence[str]) -> Sequence[CapturedAnswer]:
        """Those of these answers that are there."""
        ...

    def page(self, model: str, before: str, limit: int) -> Sequence[CapturedAnswer]:
        """Answers of a model (of all when empty) with ids before the given one, newest first."""
        ...

    def expire(self, now: datetime) -> int:
        """Deletes answers that were kept long enough; returns how many."""
        ...

    def lessons(self, model: str) -> Sequence[Lesson]:
        """What feedback on a model's answers teaches."""
        ...

    def quarantined(self) -> Collection[str]:
        """API keys and pseudonyms of which nothing is learnt now."""
        ...

    def note_taught(self, cycle: str, pipeline: str, records: Mapping[tuple[str, str], int]) -> None:
        """Keeps how many records a cycle took of each person and API key; a repeat replaces it."""
        ...


class LessonFiles(Protocol):
    """Where lessons are written for an import."""

    def write(self, pipeline: str, lines: Iterable[Json]) -> str:
        """Replaces the file of a pipeline as a whole; returns its address, which never changes."""
        ...


@dataclass(frozen=True, slots=True)
class Work:
    """The state of long-running work at a peer; `body` is the JSON form of the peer's resource."""

    name: str
    body: Json
    done: bool = False
    cancelled: bool = False
    failure: Failure | None = None
    progress: Json | None = None
    reused: bool = False


class Worker(Protocol):
    """A peer that does one kind of long work. Starting is idempotent by request id.

    Every method raises the errors of `services.kit.errors`; UnavailableError if the peer is unavailable.
    """

    async def start(self, order: Json, request_id: str) -> Work:
        """Starts the work, or returns the work that the same request started."""
        ...

    def watch(self, name: str) -> AsyncIterator[Work]:
        """The work now and at each change, until it is done."""
        ...

    async def cancel(self, name: str, request_id: str) -> None:
        """Stops it."""
        ...


class SourceDeclarations(Protocol):
    """The sources that ingest collects by itself."""

    async def declare(self, pipeline: str, sources: Sequence[Json], request_id: str) -> None:
        """Declares the sources of a pipeline; those that it declared earlier and that are not among them end.

        Raises:
            FailedPreconditionError: another pipeline declares one of them in another way.
            UnavailableError: ingest does not answer.
        """
        ...


class Datasets(Protocol):
    """The data sets of cleaning."""

    async def put(self, name: str, spec: Json) -> None:
        """Creates or replaces a data set; InvalidArgumentError if its recipe cannot be applied."""
        ...


@dataclass(frozen=True, slots=True)
class Published:
    """A version that serves; `reused` if it did already."""

    model_version: str
    reused: bool


class Models(Protocol):
    """The served models of inference and the registry of training."""

    async def publish(
        self, model: str, uri: str, digest: str, run: str, dataset_version: str, request_id: str, *, beside: bool
    ) -> Published:
        """Publishes a build; returns when it answers requests, or `beside` the serving version those that name it."""
        ...

    async def serving(self, model: str) -> str:
        """The version that serves; empty if none does."""
        ...

    async def promote(self, run: str, request_id: str) -> None:
        """Makes the run's model the champion of the registry."""
        ...


@dataclass(frozen=True, slots=True)
class Begun:
    """A roll-out that was started: `rollouts/{rollout}`, and the one at work that it waits for, empty if none is."""

    name: str
    waits_for: str = ""


class RolloutStarter(Protocol):
    """Brings new versions to their users."""

    async def begin(self, cycle: str, model: str, candidate: str, run: str, plan: RolloutPlan) -> Begun:
        """Starts the roll-out of a cycle's version, which is in the model's route. A repeat changes nothing."""
        ...


class Announcer(Protocol):
    """Publishes facts to the other services; durable when a method returns. Equal facts get equal event ids."""

    def cycle_ended(self, cycle: Cycle) -> None:
        """A cycle reached its final state."""
        ...

    def feedback(self, items: Sequence[Feedback]) -> None:
        """Someone judged answers."""
        ...


class Wakeups(Protocol):
    """Waits for events about ended work."""

    async def wait(self, resource: str, timeout_s: float) -> None:
        """Returns when an event about the resource arrives, or after `timeout_s` seconds."""
        ...


class StageTracing(Protocol):
    """Traces."""

    def stage(self, cycle: Cycle, stage: str) -> AbstractContextManager[None]:
        """A span of the cycle's trace around a stage."""
        ...
