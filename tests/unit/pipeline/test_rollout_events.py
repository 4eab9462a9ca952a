"""What a roll-out learns from events and feedback, in whatever order and however often they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from tidemill.inference.v1.inference_events_pb2 import PredictionFailed, PredictionServed, RouteChanged
from tidemill.inference.v1.route_pb2 import VERSION_ROLE_SERVING

from services.kit.bus.port import Delivery
from services.kit.bus.topics import INFERENCE_EVENTS, PREDICTIONS
from services.pipeline.adapters.cycle_store import SqlCycleStore
from services.pipeline.adapters.exclusion_store import SqlExclusionStore
from services.pipeline.adapters.feedback_store import SqlFeedbackStore
from services.pipeline.adapters.rollout_metrics import value_of
from services.pipeline.app.exclusions import Exclusions
from services.pipeline.domain.rollout import Rollout
from services.pipeline.domain.rollout_plan import Comparison, Metric, PlannedStep, RolloutPlan, StepKind
from services.pipeline.entrypoints.rollout_events import RolloutEvents
from tests.conftest import OpenDatabase
from tests.unit.pipeline.rollout_world import MODEL, SHORT, World, judgement
from tests.unit.pipeline.test_bus import delivery


@pytest.fixture
def world(open_service_database: OpenDatabase) -> World:
    return World(open_service_database("pipeline"))


async def begun(world: World, metric: Metric = Metric.ACCEPTED) -> Rollout:
    plan = RolloutPlan((PlannedStep(StepKind.AB, 0.5, SHORT),), Comparison(metric))
    name = await world.begin(plan)
    await world.settle()
    return world.read(name)


def served(world: World, answer: str, version: int, **fields: Any) -> PredictionServed:
    given = {"method": "predict", "latency_ms": 20.0, "route_etag": world.routing.now.etag, **fields}
    return PredictionServed(answer=answer, model_version=f"{MODEL}/versions/{version}", **given)


def handle(world: World, *messages: PredictionServed | PredictionFailed) -> list[Delivery]:
    """Has events handled; returns what is passed on."""
    passed: list[Delivery] = []
    events = RolloutEvents(world.metrics, world.audit, passed.extend)
    events.handle([delivery(message, PREDICTIONS) for message in messages])
    return passed


async def test_calls_are_counted_once_by_version_and_outcome(world: World) -> None:
    rollout = await begun(world)
    etag = world.routing.now.etag
    failed = PredictionFailed(answer="answers/f", model_version=rollout.candidate, code="INTERNAL", route_etag=etag)
    full = PredictionFailed(answer="answers/q", model_version=rollout.candidate, code="RESOURCE_EXHAUSTED")
    good = served(world, "answers/g", 2, user_slot=5)
    empty = served(world, "answers/e", 2, method="generate")
    for _ in range(2):
        passed = handle(world, good, failed, full, empty, good, served(world, "answers/c", 1), served(world, "o", 9))
    # Failed calls have no answer that feedback could be on.
    assert [each.event_type for each in passed] == [PredictionServed.DESCRIPTOR.full_name] * 5
    found = world.metrics.figures(rollout)
    assert (found.candidate.step.calls, found.candidate.step.errors, found.candidate.step.refusals) == (3, 1, 1)
    # The call that came by no route of a step counts for guard-rails alone.
    assert (found.candidate.whole.calls, found.candidate.whole.refusals) == (4, 2)
    assert (found.champion.step.calls, found.champion.users, found.candidate.users) == (1, 1, 3)


async def test_feedback_counts_before_and_after_its_call_and_the_last_word_of_each_user_once(world: World) -> None:
    rollout = await begun(world)
    store = SqlFeedbackStore(world.engine)
    store.record([judgement("answers/early", 1.0)])
    handle(world, *(served(world, f"answers/{name}", 2, user_slot=7) for name in ("early", "late", "twice")))
    handle(world, served(world, "answers/other", 2, user_slot=8, label="spam"), served(world, "answers/c", 1))
    store.record([judgement("answers/late", -1.0), judgement("answers/twice", -1.0)])
    store.record([judgement("answers/twice", 1.0), judgement("answers/other", 0.0, label="ham")])
    store.record([judgement("answers/nobody", 1.0)])
    sample = world.metrics.figures(rollout).candidate.judged
    # User 7 accepted two of three, user 8 said that the label was wrong.
    assert sample.count == 2
    assert sample.mean == pytest.approx((2 / 3 + 0) / 2)
    assert world.metrics.figures(rollout).champion.judged.count == 0


async def test_what_a_quarantined_person_or_key_says_does_not_count_until_it_is_lifted(world: World) -> None:
    rollout = await begun(world)
    handle(world, *(served(world, f"answers/{name}", 2, user_slot=at + 1) for at, name in enumerate("abc")))
    said = [judgement(f"answers/{name}", 1.0) for name in "abc"]
    said[0], said[1] = replace(said[0], author="eve"), replace(said[1], api_key="k9")
    SqlFeedbackStore(world.engine).record(said)
    exclusions = Exclusions(SqlExclusionStore(world.engine), SqlCycleStore(world.engine), world.clock)

    def counted() -> int:
        return world.metrics.figures(rollout).candidate.judged.count

    assert counted() == 3
    eve = exclusions.quarantine("", "", "eve", "", "all answers are praised")
    assert counted() == 2
    exclusions.quarantine("k9", "", "", "", "")
    assert counted() == 1
    exclusions.lift(eve.exclusion.name)
    assert counted() == 2


async def test_latency_is_a_mean_of_users_who_were_answered(world: World) -> None:
    rollout = await begun(world, Metric.LATENCY)
    etag = world.routing.now.etag
    handle(
        world,
        served(world, "answers/1", 2, user_slot=7, latency_ms=10.0),
        served(world, "answers/2", 2, user_slot=7, latency_ms=30.0),
        served(world, "answers/3", 2, user_slot=8, latency_ms=100.0),
        PredictionFailed(answer="answers/f", model_version=rollout.candidate, route_etag=etag, latency_ms=9e5),
    )
    sample = world.metrics.figures(rollout).candidate.judged
    assert sample.count == 2
    assert sample.mean == pytest.approx(60.0)


@pytest.mark.parametrize(
    ("said", "accepted", "rating"),
    [
        ({"rating": 0.4}, 1.0, 0.4),
        ({"rating": -1}, 0.0, -1.0),
        ({"signal": "accepted"}, 1.0, 1.0),
        ({"signal": "retried"}, 0.0, -1.0),
        ({"label": "spam"}, 1.0, 1.0),
        ({"label": "ham"}, 0.0, -1.0),
        ({"correction": "better so", "rating": 1}, 0.0, 1.0),
        ({"comment": "hm"}, None, None),
    ],
)
def test_what_is_said_has_a_value(said: dict[str, Any], accepted: float | None, rating: float | None) -> None:
    row = {"rating": 0.0, "signal": "", "label": "", "correction": "", **said}
    assert value_of(Metric.ACCEPTED, "spam", row) == accepted
    assert value_of(Metric.RATING, "spam", row) == rating


def changed(**fields: Any) -> RouteChanged:
    message = RouteChanged(model=MODEL, etag="3", **fields)
    message.entries.add(version=2, role=VERSION_ROLE_SERVING, weight=100)
    message.change_time.FromDatetime(datetime(2026, 11, 26, tzinfo=UTC))
    return message


async def test_who_changed_a_route_is_in_the_trail_once(world: World) -> None:
    passed: list[Delivery] = []
    events = RolloutEvents(world.metrics, world.audit, passed.extend)

    def arrive(*messages: RouteChanged) -> None:
        events.handle([delivery(message, INFERENCE_EVENTS) for message in messages])

    by_anna = changed(method="PromoteVersion", api_key="k1", reason="it is better")
    arrive(by_anna, by_anna)
    arrive(by_anna)
    # Of an earlier release: nothing is known of who did it.
    arrive(changed())
    (entry,) = world.audit.page(MODEL, "", 10)
    assert (entry.actor, entry.action, entry.reason) == ("key:k1", "route.PromoteVersion", "it is better")
    assert entry.facts == {"versions": "2:serving=100", "etag": "3"}
    assert passed == []
    assert unsent(world.audit.unsent(10)) == []


def unsent(entries: Sequence[Any]) -> list[str]:
    return [entry.action for entry in entries]
