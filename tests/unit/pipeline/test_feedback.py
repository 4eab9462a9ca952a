from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from services.kit.clock import SystemClock
from services.kit.errors import InvalidArgumentError, UnavailableError
from services.pipeline.app.feedback import FeedbackBook
from services.pipeline.domain.feedback import Answer
from services.pipeline.entrypoints.housekeeping import Bell, tend_feedback
from tests.unit.pipeline.conftest import World

NOW = datetime.now(UTC)


def book(world: World) -> FeedbackBook:
    return FeedbackBook(world.feedback, world.announcer, SystemClock(), keep_answers_days=30, recorded=lambda: None)


def answer(name: str, version: str = "models/headlines/versions/1", age_days: int = 0) -> Answer:
    return Answer(f"answers/{name}", version, NOW - timedelta(days=age_days))


def test_feedback_bears_the_version_that_answered(world: World) -> None:
    feedback = book(world)
    feedback.remember([answer("a")])
    kept = feedback.record("answers/a", -1, "Better", "me", "", "")
    assert kept.model_version == "models/headlines/versions/1"
    feedback.tend()
    feedback.tend()
    assert [item.name for item in world.announcer.told] == [kept.name]


def test_feedback_that_comes_before_its_prediction_is_completed(world: World) -> None:
    feedback = book(world)
    assert feedback.record("answers/a", 1, "", "", "", "").model_version == ""
    feedback.remember([answer("a"), answer("b")])
    assert [item.model_version for item in feedback.page("", "", 10)] == ["models/headlines/versions/1"]


def test_predictions_come_twice_without_harm(world: World) -> None:
    feedback = book(world)
    feedback.remember([answer("a"), answer("a")])
    feedback.remember([answer("a"), answer("b")])
    feedback.remember([])
    assert feedback.record("answers/b", 1, "", "", "", "").model_version


def test_a_repeated_request_records_once(world: World) -> None:
    feedback = book(world)
    first = feedback.record("answers/a", 1, "", "", "r1", "")
    assert feedback.record("answers/a", 1, "", "", "r1", "").name == first.name
    assert len(feedback.page("", "", 10)) == 1
    feedback.tend()
    assert len(world.announcer.told) == 1


@pytest.mark.parametrize(
    "other",
    [("answers/b", 1, "", ""), ("answers/a", 0.5, "", ""), ("answers/a", 1, "x", ""), ("answers/a", 1, "", "me")],
)
def test_a_request_id_is_of_one_judgement_only(world: World, other: tuple[str, float, str, str]) -> None:
    feedback = book(world)
    first = feedback.record("answers/a", 1, "", "", "r1", "")
    with pytest.raises(InvalidArgumentError) as caught:
        feedback.record(*other, "r1", "")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert caught.value.metadata == {"request_id": "r1", "feedback": first.name}
    assert len(feedback.page("", "", 10)) == 1


async def test_feedback_is_told_as_soon_as_it_is_recorded_and_again_after_the_bus_was_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.pipeline.entrypoints.housekeeping._AGAIN_S", 0.01)
    bell = Bell(asyncio.get_running_loop())
    feedback = FeedbackBook(world.feedback, world.announcer, SystemClock(), 30, bell.ring)
    tending = asyncio.create_task(tend_feedback(feedback, bell))

    async def told(count: int) -> None:
        async with asyncio.timeout(30):
            while len(world.announcer.told) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    try:
        names = [feedback.record("answers/a", 1, "", "", "", "").name]
        await told(1)
        world.announcer.error = UnavailableError("away")
        names.append(feedback.record("answers/b", 1, "", "", "", "").name)
        await asyncio.sleep(0.1)
        assert len(world.announcer.told) == 1
        world.announcer.error = None
        await told(2)
    finally:
        tending.cancel()
        await asyncio.gather(tending, return_exceptions=True)
    assert [item.name for item in world.announcer.told] == names


def test_pages_by_model_from_new_to_old(world: World) -> None:
    feedback = book(world)
    feedback.remember([answer("a"), answer("b", "models/headlines-2/versions/1"), answer("c")])
    names = {key: feedback.record(f"answers/{key}", 1, "", "", "", "").name for key in "abc"}
    found = feedback.page("models/headlines", "", 10)
    assert [item.name for item in found] == [names["c"], names["a"]]
    assert [item.name for item in feedback.page("models/headlines", found[0].feedback_id, 10)] == [names["a"]]


def test_old_answers_are_forgotten_and_feedback_stays(world: World) -> None:
    feedback = book(world)
    feedback.remember([answer("old", age_days=31), answer("new", age_days=29)])
    kept = feedback.record("answers/old", 1, "", "", "", "")
    feedback.tend()
    assert feedback.record("answers/old", 1, "", "", "", "").model_version == ""
    assert feedback.record("answers/new", 1, "", "", "", "").model_version
    assert kept.name in {item.name for item in feedback.page("models/headlines", "", 10)}
