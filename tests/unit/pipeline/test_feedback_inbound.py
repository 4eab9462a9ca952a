"""Feedback of other producers: CloudEvents on a topic of their own."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from services.kit.bus.port import Delivery
from services.kit.bus.topics import FEEDBACK_INBOUND
from services.kit.clock import SystemClock
from services.kit.errors import InvalidArgumentError
from services.pipeline.adapters.exclusion_store import SqlExclusionStore
from services.pipeline.app.exclusions import Exclusions
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.domain.feedback import Signal
from services.pipeline.entrypoints.feedback_inbound import FeedbackInbound
from tests.unit.pipeline.conftest import Harness


def event(
    data: Any, event_id: str = "1", topic: str = FEEDBACK_INBOUND.name, log_time_ms: int | None = None
) -> Delivery:
    headers = {
        "ce_specversion": b"1.0",
        "ce_id": event_id.encode(),
        "ce_source": b"/shop",
        "ce_type": b"com.example.judged",
        "content-type": b"application/json",
    }
    return Delivery(topic, 0, 0, None, json.dumps(data).encode(), headers, log_time_ms)


@pytest.fixture
def inbound(harness: Harness) -> FeedbackInbound:
    service = FeedbackService(harness.feedback, harness.captures, harness.announcer, SystemClock(), 30, lambda: None)
    return FeedbackInbound(service, lambda _: None)


def test_an_event_is_a_judgement_and_the_same_event_is_the_same_one(harness: Harness, inbound: FeedbackInbound) -> None:
    data = {"answer": "a", "label": "negative", "signal": "edited", "author": "anna", "tenant": "acme", "rating": -1}
    inbound.handle([event(data), event({"answer": "answers/b", "rating": 1}, "2")])
    inbound.handle([event(data)])
    first, second = sorted(harness.feedback.page("", "", 10), key=lambda item: item.answer)
    assert (first.answer, first.label, first.signal, first.rating) == ("answers/a", "negative", Signal.EDITED, -1)
    assert (first.author, first.tenant, first.api_key) == ("anna", "acme", "event:/shop")
    assert (second.answer, second.rating) == ("answers/b", 1)


def test_an_event_from_before_the_erasure_of_its_author_is_left_out(harness: Harness, inbound: FeedbackInbound) -> None:
    data = {"answer": "a", "rating": 1, "author": "anna", "tenant": "acme"}
    exclusions = Exclusions(SqlExclusionStore(harness.captured._engine), harness.store, SystemClock())
    exclusions.erase("anna", "acme", "")
    now_ms = int(time.time() * 1000)
    inbound.handle([event(data, "1", log_time_ms=now_ms - 60_000), event(data, "2", log_time_ms=now_ms + 60_000)])
    # A time that no calendar has does not stop the reader.
    inbound.handle([event(data, "3", log_time_ms=2**62)])
    assert len(harness.feedback.page("", "", 10)) == 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("good", "NOT_AN_OBJECT"),
        ({"answer": "a"}, "NO_FEEDBACK"),
        ({"answer": "a", "rating": "best"}, "INVALID_FIELD"),
        ({"answer": "a", "rating": 2}, "INVALID_FIELD"),
        ({"answer": "a b", "rating": 1}, "INVALID_FIELD"),
        ({"rating": 1}, "INVALID_FIELD"),
        ({"answer": "a", "signal": "loved"}, "INVALID_FIELD"),
        ({"answer": "a", "rating": 1, "stars": 5}, "UNKNOWN_FIELD"),
        ({"answer": "a", "correction": "a\u0007b"}, "CONTROL_CHARACTER"),
    ],
)
def test_what_is_not_feedback_is_refused_and_nothing_of_its_batch_is_recorded(
    harness: Harness, inbound: FeedbackInbound, data: Any, reason: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        inbound.handle([event({"answer": "b", "rating": 1}, "0"), event(data)])
    assert caught.value.reason == reason
    assert harness.feedback.page("", "", 10) == []


def test_other_events_are_passed_on(harness: Harness, inbound: FeedbackInbound) -> None:
    passed: list[str] = []
    handler = FeedbackInbound(inbound._feedback, lambda batch: passed.extend(item.topic for item in batch))
    handler.handle([event({}, topic="tidemill.predictions"), event({"answer": "b", "rating": 1})])
    assert passed == ["tidemill.predictions"]
    assert len(harness.feedback.page("", "", 10)) == 1
