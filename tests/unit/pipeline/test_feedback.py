from __future__ import annotations

from datetime import UTC, datetime, timedelta

from services.kit.clock import SystemClock
from services.kit.errors import UnavailableError
from services.pipeline.app.feedback import FeedbackBook
from services.pipeline.domain.feedback import Answer
from tests.unit.pipeline.conftest import World

NOW = datetime.now(UTC)


def book(world: World) -> FeedbackBook:
    return FeedbackBook(world.feedback, world.announcer, SystemClock(), keep_answers_days=30)


def answer(name: str, version: str = "models/headlines/versions/1", age_days: int = 0) -> Answer:
    return Answer(f"answers/{name}", version, NOW - timedelta(days=age_days))


def test_feedback_bears_the_version_that_answered(world: World) -> None:
    feedback = book(world)
    feedback.remember([answer("a")])
    kept = feedback.record("answers/a", -1, "Better", "me", "", "")
    assert kept.model_version == "models/headlines/versions/1"
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
    assert len(world.announcer.told) == 1


def test_feedback_counts_while_the_bus_is_away_and_is_told_later(world: World) -> None:
    feedback = book(world)
    world.announcer.error = UnavailableError("away")
    kept = feedback.record("answers/a", 1, "", "", "", "")
    assert not world.announcer.told
    world.announcer.error = None
    feedback.tend()
    assert [item.name for item in world.announcer.told] == [kept.name]


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
