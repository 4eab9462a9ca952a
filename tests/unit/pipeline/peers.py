"""Peers of the pipeline in memory: they do their work in steps that a test controls, and fail where it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from services.kit.errors import TidemillError, UnavailableError
from services.kit.failure import Failure
from services.pipeline.app.ports import Begun, Published, Work
from services.pipeline.domain.cycle import Cycle, Json
from services.pipeline.domain.feedback import Feedback
from services.pipeline.domain.rollout_plan import RolloutPlan

DIGEST = "d" * 64


def report(base: float = 0.1, tuned: float = 0.2, **qualities: float) -> dict[str, Any]:
    """JSON form of a training report with one build a precision; the later ones are faster and smaller."""
    variants = [
        {
            "precision": precision,
            "uri": f"file:///builds/{precision}",
            "digest": DIGEST,
            "size_bytes": str(500_000_000 // (number + 1)),
            "quality": {"name": "rouge_l", "value": quality, "sample_size": "40"},
            "tokens_per_second": 20.0 * (number + 1),
        }
        for number, (precision, quality) in enumerate(qualities.items())
    ]
    return {
        "base": {"name": "rouge_l", "value": base},
        "tuned": {"name": "rouge_l", "value": tuned},
        "variants": variants,
    }


class FakeDeclarations:
    """Keeps what pipelines declare; `error` is raised once."""

    def __init__(self) -> None:
        self.declared: dict[str, list[Json]] = {}
        self.error: TidemillError | None = None

    async def declare(self, pipeline: str, sources: Sequence[Json], request_id: str) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.declared[pipeline] = list(sources)


class FakeWorker:
    """Work that passes through two states; `release` lets it end, and without `answering` no order is answered."""

    def __init__(self, kind: str, end: Json, *, held: bool = False) -> None:
        self.kind, self.end = kind, end
        self.release, self.answering = asyncio.Event(), asyncio.Event()
        self.answering.set()
        if not held:
            self.release.set()
        self.errors: list[TidemillError] = []
        self.cancel_errors: list[TidemillError] = []
        self.failure: Failure | None = None
        self.failures: dict[str, Failure] = {}
        self.started: dict[str, str] = {}
        self.orders: list[Json] = []
        self.cancelled: list[str] = []

    async def start(self, order: Json, request_id: str) -> Work:
        if self.errors:
            raise self.errors.pop(0)
        self.orders.append(order)
        name = self.started.setdefault(request_id, f"{self.kind}/{len(self.started) + 1}")
        await self.answering.wait()
        return Work(name, {"name": name})

    async def watch(self, name: str) -> AsyncIterator[Work]:
        yield Work(name, {"name": name}, progress={"phase": self.kind, "done": "1", "total": "2"})
        await self.release.wait()
        if self.errors:
            raise self.errors.pop(0)
        yield Work(name, {"name": name, **self.end}, done=True, failure=self.failures.get(name, self.failure))

    async def cancel(self, name: str, request_id: str) -> None:
        if self.cancel_errors:
            raise self.cancel_errors.pop(0)
        self.cancelled.append(name)


class FakeDatasets:
    def __init__(self) -> None:
        self.put_specs: list[tuple[str, Json]] = []
        self.error: TidemillError | None = None

    async def put(self, name: str, spec: Json) -> None:
        if self.error is not None:
            raise self.error
        self.put_specs.append((name, spec))


class FakeModels:
    def __init__(self) -> None:
        self.published: dict[str, str] = {}
        self.beside: list[str] = []
        self.serves = ""
        self.promoted: list[str] = []
        self.errors: list[TidemillError] = []

    async def publish(
        self, model: str, uri: str, digest: str, run: str, dataset_version: str, request_id: str, *, beside: bool
    ) -> Published:
        if self.errors:
            raise self.errors.pop(0)
        self.published.setdefault(request_id, uri)
        name = f"{model}/versions/{len(self.published)}"
        if beside:
            self.beside.append(name)
        else:
            self.serves = name
        return Published(name, False)

    async def serving(self, model: str) -> str:
        return self.serves

    async def promote(self, run: str, request_id: str) -> None:
        self.promoted.append(run)


class FakeRollouts:
    def __init__(self) -> None:
        self.begun: list[tuple[str, str, str]] = []
        self.at_work = ""

    async def begin(self, cycle: str, model: str, candidate: str, run: str, plan: RolloutPlan) -> Begun:
        self.begun.append((cycle, candidate, run))
        return Begun(f"rollouts/{cycle.rpartition('/')[2]}", self.at_work)


class FakeAnnouncer:
    def __init__(self) -> None:
        self.ended: list[Cycle] = []
        self.published: list[Feedback] = []
        self.error: TidemillError | None = None

    def cycle_ended(self, cycle: Cycle) -> None:
        self.ended.append(cycle)

    def feedback(self, items: Any) -> None:
        if self.error is not None:
            raise self.error
        self.published += items


class FakeRecordCounts:
    """The arrivals of a source's records, as a test sets them; `away` for a cleaning that does not answer."""

    def __init__(self) -> None:
        self.arrivals: list[int] = []
        self.away = False

    async def count(self, sources: Sequence[str], after: int, tenants: Sequence[str]) -> tuple[int, int]:
        if self.away:
            raise UnavailableError("cleaning is unavailable.")
        return sum(arrival > after for arrival in self.arrivals), max(self.arrivals, default=0)


class RecordingTracing:
    """Calls `after[stage]` when a stage's span ends."""

    def __init__(self) -> None:
        self.after: dict[str, Callable[[str], None]] = {}

    @contextmanager
    def stage(self, cycle: Cycle, stage: str) -> Iterator[None]:
        yield
        if stage in self.after:
            self.after[stage](cycle.name)


class ImpatientWakeups:
    """No one waits long in a test."""

    async def wait(self, resource: str, timeout_s: float) -> None:
        await asyncio.sleep(0)
