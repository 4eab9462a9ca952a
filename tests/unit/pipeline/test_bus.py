"""Events that the pipeline consumes and publishes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry import propagate
from tidemill.cleaning.v1.cleaning_events_pb2 import DatasetVersionBuilt
from tidemill.inference.v1.inference_events_pb2 import PredictionServed
from tidemill.ingest.v1.ingest_events_pb2 import ImportCompleted
from tidemill.pipeline.v1.pipeline_events_pb2 import CycleEnded, FeedbackRecorded
from tidemill.training.v1.training_events_pb2 import RunCancelled, RunFailed, RunSucceeded

from services.kit.bus.cloudevents import encode
from services.kit.bus.port import Delivery, OutgoingEvent
from services.kit.bus.topics import FEEDBACK, PIPELINE_EVENTS, PREDICTIONS, TRAINING_EVENTS, Topic
from services.kit.clock import SystemClock
from services.kit.errors import InvalidArgumentError
from services.pipeline.adapters.announcer import BusAnnouncer
from services.pipeline.adapters.wakeups import EventWakeups
from services.pipeline.app.feedback import FeedbackService
from services.pipeline.domain.cycle import Cycle, CycleState
from services.pipeline.domain.feedback import Feedback
from services.pipeline.entrypoints.consumer import PeerEventHandler
from tests.unit.pipeline.conftest import Harness

_NOW = datetime.now(UTC)
_TRACE = "00-11111111111111111111111111111111-2222222222222222-01"


def delivery(message: Any, topic: Topic = TRAINING_EVENTS) -> Delivery:
    [event] = encode([OutgoingEvent("k", message)], "peer")
    return Delivery(topic.name, 0, 0, event.key, event.value, dict(event.headers))


def handler(harness: Harness, ended: list[str]) -> tuple[PeerEventHandler, FeedbackService]:
    feedback_service = FeedbackService(
        harness.feedback, harness.captures, harness.announcer, SystemClock(), 30, lambda: None
    )
    return PeerEventHandler(feedback_service, harness.captures, ended.append), feedback_service


def test_ended_work_of_each_peer_wakes_the_cycle_that_waits_for_it(harness: Harness) -> None:
    ended: list[str] = []
    handle, _ = handler(harness, ended)
    handle.handle(
        [
            delivery(ImportCompleted(import_name="imports/1")),
            delivery(DatasetVersionBuilt(dataset_version="datasets/d/versions/1")),
            delivery(RunSucceeded(run="runs/1")),
            delivery(RunFailed(run="runs/2")),
            delivery(RunCancelled(run="runs/3")),
            # Events of later versions of the peers are ignored.
            delivery(CycleEnded(cycle="x")),
        ]
    )
    assert ended == ["imports/1", "datasets/d/versions/1", "runs/1", "runs/2", "runs/3"]


def test_an_answer_that_comes_again_and_late_completes_its_feedback(harness: Harness) -> None:
    handle, feedback_service = handler(harness, [])
    feedback_service.record([Feedback("", "answers/a", 1, "", "", datetime.now(UTC))])
    served = PredictionServed(answer="answers/a", model_version="models/m/versions/1")
    served.answer_time.FromDatetime(_NOW)
    handle.handle([delivery(served, PREDICTIONS)] * 2)
    handle.handle([delivery(served, PREDICTIONS)])
    assert [item.model_version for item in feedback_service.page("models/m", "", 10)] == ["models/m/versions/1"]


def test_the_answer_to_a_copy_is_not_kept_for_feedback(harness: Harness) -> None:
    handle, feedback_service = handler(harness, [])
    for answer, shadowed in (("answers/a", ""), ("answers/b", "answers/a")):
        served = PredictionServed(answer=answer, model_version="models/m/versions/1", shadowed_answer=shadowed)
        served.answer_time.FromDatetime(_NOW)
        handle.handle([delivery(served, PREDICTIONS)])
        feedback_service.record([Feedback("", answer, 1, "", "", datetime.now(UTC))])
    assert [item.answer for item in feedback_service.page("models/m", "", 10)] == ["answers/a"]


def test_a_poison_prediction_is_refused_for_good(harness: Harness) -> None:
    handle, _ = handler(harness, [])
    poison = delivery(PredictionServed(answer="answers/a"), PREDICTIONS)
    for broken in (
        Delivery(PREDICTIONS.name, 0, 0, None, b"\xff", poison.headers),
        Delivery(PREDICTIONS.name, 0, 0, None, poison.value, {}),
    ):
        with pytest.raises(InvalidArgumentError):
            handle.handle([broken])


async def test_an_event_of_another_thread_wakes_all_its_waiters_and_no_others() -> None:
    wakeups = EventWakeups(asyncio.get_running_loop())
    woken: list[str] = []

    async def wait(name: str, resource: str, timeout_s: float) -> None:
        await wakeups.wait(resource, timeout_s)
        woken.append(name)

    first, second = asyncio.create_task(wait("a", "runs/1", 60)), asyncio.create_task(wait("b", "runs/1", 60))
    other = asyncio.create_task(wait("c", "runs/2", 60))
    await asyncio.sleep(0)
    await asyncio.to_thread(wakeups.notify, "runs/3")
    await asyncio.to_thread(wakeups.notify, "runs/1")
    await asyncio.gather(first, second)
    assert sorted(woken) == ["a", "b"]
    assert not other.done()
    other.cancel()
    await wakeups.wait("runs/4", 0.05)


class FakePublisher:
    """Keeps what it is given, with the trace that it was given in."""

    def __init__(self) -> None:
        self.events: list[tuple[Topic, OutgoingEvent, str]] = []

    def publish(self, topic: Topic, events: Sequence[OutgoingEvent]) -> None:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        self.events += [(topic, event, carrier.get("traceparent", "")) for event in events]


def test_a_fact_published_again_is_the_same_event_in_the_trace_that_caused_it(harness: Harness) -> None:
    publisher = FakePublisher()
    announcer = BusAnnouncer(publisher)
    cycle = Cycle("loop", "c1", harness.spec, _NOW, _NOW, traceparent=_TRACE).ended(CycleState.REJECTED, _NOW)
    item = Feedback("f1", "answers/a", -1.0, "Better", "me", _NOW, traceparent=_TRACE)
    for _ in range(2):
        announcer.cycle_ended(cycle)
        announcer.feedback([item])
    published = publisher.events
    assert [(topic, event.key) for topic, event, _ in published[:2]] == [
        (PIPELINE_EVENTS, "pipelines/loop/cycles/c1"),
        (FEEDBACK, "answers/a"),
    ]
    assert [event.event_id for _, event, _ in published[:2]] == [event.event_id for _, event, _ in published[2:]]
    assert published[0][1].message == CycleEnded(cycle=cycle.name, state="STATE_REJECTED")
    recorded = published[1][1].message
    assert isinstance(recorded, FeedbackRecorded)
    assert (recorded.feedback, recorded.rating, recorded.correction) == ("feedback/f1", -1.0, "Better")
    assert {trace for _, _, trace in published} == {_TRACE}
