from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from services.kit.clock import SystemClock
from services.kit.errors import InvalidArgumentError, UnavailableError
from services.kit.loops import Wakeup
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.domain.feedback import Answer, Feedback
from services.pipeline.entrypoints.worker import publish_pending_feedback
from tests.unit.pipeline.conftest import Harness
from tests.waiting import eventually

NOW = datetime.now(UTC)


def feedback_service(harness: Harness) -> FeedbackService:
    return FeedbackService(
        harness.feedback,
        harness.captures,
        harness.announcer,
        SystemClock(),
        keep_answers_days=30,
        recorded=lambda: None,
    )


def record(
    service: FeedbackService, answer: str, rating: float, correction: str = "", author: str = "", request_id: str = ""
) -> Feedback:
    (kept,) = service.record([Feedback("", answer, rating, correction, author, NOW, request_id=request_id)])
    return kept


def answer(name: str, version: str = "models/headlines/versions/1", age_days: int = 0) -> Answer:
    return Answer(f"answers/{name}", version, NOW - timedelta(days=age_days))


def test_feedback_has_the_version_that_answered(harness: Harness) -> None:
    feedback = feedback_service(harness)
    feedback.remember([answer("a")])
    kept = record(feedback, "answers/a", -1, "Better", "me", "")
    assert kept.model_version == "models/headlines/versions/1"
    feedback.publish_pending()
    feedback.publish_pending()
    assert [item.name for item in harness.announcer.published] == [kept.name]


def test_feedback_that_comes_before_its_prediction_is_completed(harness: Harness) -> None:
    feedback = feedback_service(harness)
    assert record(feedback, "answers/a", 1, "", "", "").model_version == ""
    feedback.remember([answer("a"), answer("b")])
    assert [item.model_version for item in feedback.page("", "", 10)] == ["models/headlines/versions/1"]


def test_predictions_come_twice_without_harm(harness: Harness) -> None:
    feedback = feedback_service(harness)
    feedback.remember([answer("a"), answer("a")])
    feedback.remember([answer("a"), answer("b")])
    feedback.remember([])
    assert record(feedback, "answers/b", 1, "", "", "").model_version


def test_a_repeated_request_records_once(harness: Harness) -> None:
    feedback = feedback_service(harness)
    first = record(feedback, "answers/a", 1, "", "", "r1")
    assert record(feedback, "answers/a", 1, "", "", "r1").name == first.name
    assert len(feedback.page("", "", 10)) == 1
    feedback.publish_pending()
    assert len(harness.announcer.published) == 1


@pytest.mark.parametrize(
    "other",
    [("answers/b", 1, "", ""), ("answers/a", 0.5, "", ""), ("answers/a", 1, "x", ""), ("answers/a", 1, "", "me")],
)
def test_a_request_id_is_of_one_judgement_only(harness: Harness, other: tuple[str, float, str, str]) -> None:
    feedback = feedback_service(harness)
    first = record(feedback, "answers/a", 1, "", "", "r1")
    with pytest.raises(InvalidArgumentError) as caught:
        record(feedback, *other, "r1")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert caught.value.metadata == {"request_id": "r1", "feedback": first.name}
    assert len(feedback.page("", "", 10)) == 1


async def test_feedback_is_reported_as_soon_as_it_is_recorded_and_again_after_the_bus_was_unavailable(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.kit.retrying.FIRST_PAUSE_S", 0.01)
    signal = Wakeup(asyncio.get_running_loop())
    feedback = FeedbackService(harness.feedback, harness.captures, harness.announcer, SystemClock(), 30, signal.set)
    publishing = asyncio.create_task(publish_pending_feedback(feedback, signal))

    async def published(count: int) -> None:
        await eventually(lambda: len(harness.announcer.published) >= count, f"{count} published")

    try:
        names = [record(feedback, "answers/a", 1, "", "", "").name]
        await published(1)
        harness.announcer.error = UnavailableError("away")
        names.append(record(feedback, "answers/b", 1, "", "", "").name)
        await asyncio.sleep(0.1)
        assert len(harness.announcer.published) == 1
        harness.announcer.error = None
        await published(2)
    finally:
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
    assert [item.name for item in harness.announcer.published] == names


def test_pages_by_model_from_new_to_old(harness: Harness) -> None:
    feedback = feedback_service(harness)
    feedback.remember([answer("a"), answer("b", "models/headlines-2/versions/1"), answer("c")])
    names = {key: record(feedback, f"answers/{key}", 1, "", "", "").name for key in "abc"}
    found = feedback.page("models/headlines", "", 10)
    assert [item.name for item in found] == [names["c"], names["a"]]
    assert [item.name for item in feedback.page("models/headlines", found[0].feedback_id, 10)] == [names["a"]]


def test_old_answers_are_forgotten_and_feedback_stays(harness: Harness) -> None:
    feedback = feedback_service(harness)
    feedback.remember([answer("old", age_days=31), answer("new", age_days=29)])
    kept = record(feedback, "answers/old", 1, "", "", "")
    feedback.publish_pending()
    assert record(feedback, "answers/old", 1, "", "", "").model_version == ""
    assert record(feedback, "answers/new", 1, "", "", "").model_version
    assert kept.name in {item.name for item in feedback.page("models/headlines", "", 10)}
