"""Roll-outs in a small world: a real database, inference's rules of routes, and users who ask and judge."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, insert

from services.inference.domain.route import ModelRoute, RouteEntry
from services.kit.errors import AbortedError, TidemillError
from services.kit.ids import new_id
from services.pipeline.adapters.audit_store import SqlAuditStore
from services.pipeline.adapters.rollout_metrics import SqlRolloutMetrics
from services.pipeline.adapters.rollout_store import SqlRolloutStore
from services.pipeline.adapters.rows import feedback_row
from services.pipeline.adapters.tables import feedback, judge_ratings
from services.pipeline.app.rollout_ports import Call, ModelRoutes, Outcome, RoutedRole
from services.pipeline.app.rollout_runner import RolloutParts, RolloutRunner
from services.pipeline.app.rollouts import Rollouts
from services.pipeline.domain.feedback import Feedback
from services.pipeline.domain.judge import JudgeSpec, RatingState
from services.pipeline.domain.rollout import Rollout
from services.pipeline.domain.rollout_plan import Comparison, PlannedStep, RolloutPlan, StepKind, StepLength
from services.serving.domain.route import Role

MODEL = "models/reviews"
CYCLE = f"pipelines/reviews/cycles/{'0' * 25}1"
SHORT = StepLength(min_minutes=5, min_answers=20, max_minutes=600)
PLAN = RolloutPlan(
    (
        PlannedStep(StepKind.SHADOW, 0.0, SHORT),
        PlannedStep(StepKind.CANARY, 0.2, SHORT),
        PlannedStep(StepKind.AB, 0.5, SHORT),
    )
)


class FakeClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 26, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()

    def forward(self, minutes: float) -> None:
        self.time += timedelta(minutes=minutes)


class FakeRouting:
    """Inference's route of one model, by the rules of its domain."""

    def __init__(self) -> None:
        self.now = ModelRoute("reviews", 1).having([RouteEntry(1, Role.SERVING, 100), RouteEntry(2, Role.CANDIDATE)])
        self.changes: list[str] = []
        self.error: TidemillError | None = None

    async def route(self, model: str) -> ModelRoutes:
        if self.error is not None:
            raise self.error
        versions = {entry.number: RoutedRole(entry.role.value, entry.weight) for entry in self.now.entries}
        return ModelRoutes(versions, self.now.aliases, self.now.etag)

    async def set_route(
        self, model: str, versions: Mapping[int, RoutedRole], aliases: Mapping[str, int], etag: str, reason: str
    ) -> str:
        if etag != self.now.etag:
            raise AbortedError("changed meanwhile")
        entries = [RouteEntry(number, Role(each.role), each.weight) for number, each in versions.items()]
        return self.change(self.now.set_to(entries, aliases), reason)

    async def promote(self, model: str, number: int, reason: str) -> str:
        return self.change(self.now.served_by(number), reason)

    def change(self, route: ModelRoute, reason: str) -> str:
        self.now = replace(route, revision=self.now.revision + 1)
        self.changes.append(reason)
        return self.now.etag


class FakeRegistry:
    """Notes what is made the champion."""

    def __init__(self) -> None:
        self.promoted: list[str] = []

    async def promote(self, run: str, request_id: str) -> None:
        self.promoted.append(run)


@dataclass
class World:
    """All of roll-outs."""

    engine: Engine
    clock: FakeClock = field(default_factory=FakeClock)
    routing: FakeRouting = field(default_factory=FakeRouting)
    registry: FakeRegistry = field(default_factory=FakeRegistry)
    judge: JudgeSpec | None = None
    """Who judges instead of the users."""

    def __post_init__(self) -> None:
        self.store = SqlRolloutStore(self.engine, self.clock)
        self.metrics, self.audit = SqlRolloutMetrics(self.engine), SqlAuditStore(self.engine)
        self.numbers = itertools.count()
        self.random = random.Random(7)

    def parts(self) -> RolloutParts:
        return RolloutParts(self.store, self.metrics, self.routing, self.registry, self.clock)

    def rollouts(self) -> Rollouts:
        return Rollouts(self.parts(), self.audit, lambda: None)

    async def begin(self, plan: RolloutPlan = PLAN, candidate: int = 2, cycle: str = CYCLE) -> str:
        begun = await self.rollouts().begin(cycle, MODEL, f"{MODEL}/versions/{candidate}", "runs/r", plan)
        return begun.name

    async def settle(self) -> None:
        """Until nothing changes any more at this moment."""
        # No machine is too slow to compare a few hundred calls before the next step.
        runner = RolloutRunner(self.parts(), patience_s=600)
        while await runner.step():
            pass

    def read(self, name: str) -> Rollout:
        found = self.store.get(name)
        assert found is not None
        return found

    def version_of(self, slot: int) -> int:
        """The version that answers a slot's user by the route now."""
        for entry in self.now_entries():
            if any(begin <= slot < end for begin, end in entry.users):
                return entry.number
        raise AssertionError("every slot has a version")

    def now_entries(self) -> tuple[RouteEntry, ...]:
        return self.routing.now.entries

    def call(self, version: int, slot: int = 0, **changes: object) -> Call:
        """A call that a version answered by the route now."""
        answer = f"answers/{next(self.numbers)}"
        made = Call(answer, f"{MODEL}/versions/{version}", 20.0, self.routing.now.etag, slot)
        return replace(made, **changes)  # type: ignore[arg-type]

    def ask(
        self, users: int, likes: Mapping[int, float] | None = None, outcome: Callable[[int], Outcome] | None = None
    ) -> None:
        """Users ask once each, and judge by the share of answers of each version that they like; shadows get copies."""
        calls, judged = [], []
        shadows = [entry.number for entry in self.now_entries() if entry.role is Role.SHADOW]
        for _ in range(users):
            slot = self.random.randrange(10_000)
            version = self.version_of(slot)
            call = self.call(version, slot + 1, outcome=outcome(version) if outcome else Outcome.ANSWERED)
            calls.append(call)
            calls += [
                self.call(each, shadow=True, outcome=outcome(each) if outcome else Outcome.ANSWERED) for each in shadows
            ]
            if likes is not None:
                judged.append(judgement(call.answer, 1.0 if self.random.random() < likes[version] else -1.0))
        self.metrics.count(calls)
        if judged and self.judge is not None:
            self.rate(judged, self.judge)
        elif judged:
            rows = [{**feedback_row(item), "request_id": None, "announced": False} for item in judged]
            with self.engine.begin() as connection:
                connection.execute(insert(feedback), rows)

    def rate(self, judged: Sequence[Feedback], judge: JudgeSpec) -> None:
        """A judge rates as these would have."""
        rows = [
            {
                "answer": item.answer,
                "judge": judge.name,
                "model": MODEL,
                "version": judge.version,
                "state": RatingState.RATED.value,
                "rating": item.rating,
                "reason": "",
                "attempts": 0,
                "create_time": item.create_time,
                "due_time": item.create_time,
                "rate_time": item.create_time,
            }
            for item in judged
        ]
        with self.engine.begin() as connection:
            connection.execute(insert(judge_ratings), rows)

    def trail(self) -> list[tuple[str, str]]:
        """What was done, oldest first, and why."""
        return [(entry.action, entry.reason) for entry in reversed(self.audit.page("", "", 1000))]


def judgement(answer: str, rating: float, **said: str) -> Feedback:
    """Feedback on an answer."""
    correction, label = said.get("correction", ""), said.get("label", "")
    return Feedback(new_id(), answer, rating, correction, "", datetime.now(UTC), label=label)


def longer(plan: RolloutPlan, **comparison: object) -> RolloutPlan:
    """The plan with another comparison."""
    return replace(plan, comparison=replace(Comparison(), **comparison))  # type: ignore[arg-type]
