"""What is noted of a call for those who compare versions: its route, its users, and whether it failed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry
from tidemill.inference.v1.inference_events_pb2 import PredictionFailed

from services.kit.bus.port import OutgoingEvent
from services.kit.bus.topics import Topic
from services.kit.clock import SystemClock
from services.kit.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError
from services.serving.adapters.served_log import BackgroundServedLog
from services.serving.app.ports import Served
from services.serving.app.routing import RoutingTable
from services.serving.app.serving import Serving
from services.serving.app.shadowing import Shadows
from services.serving.domain.answer import Embedded, FinishReason, Piece, Prompt, Recognized, Sampling, Scored, Task
from services.serving.domain.names import ModelReference
from services.serving.domain.route import SLOTS, Route, RoutedVersion, slot_of
from tests.unit.serving.test_shadowing import Log

M = ModelReference("m")


class Server:
    """Answers, or fails as it is asked to."""

    error: Exception | None = None

    async def classify(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Scored]:
        if self.error is not None:
            raise self.error
        return [Scored(scores=(0.9, 0.1)) for _ in texts]

    async def embed(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Embedded]:
        raise NotImplementedError

    async def recognize(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Recognized]:
        raise NotImplementedError

    async def generate(self, version: RoutedVersion, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        yield Piece("a", FinishReason.NONE, 3, 1)
        if self.error is not None:
            raise self.error
        yield Piece("b", FinishReason.STOP, 3, 2)


def parts(task: Task) -> tuple[Server, Log, Serving]:
    table, server, log, clock = RoutingTable(), Server(), Log(), SystemClock()
    version = RoutedVersion("m", 1, task, labels=("a", "b"), users=((0, SLOTS),))
    table.replace([Route("m", datetime(2026, 1, 1, tzinfo=UTC), (version,), etag="7")])
    return server, log, Serving(table, server, log, Shadows(table, server, log, log, clock), clock)


async def test_an_answer_says_by_which_route_and_for_which_users_it_was_given() -> None:
    _, log, serving = parts(Task.TEXT_CLASSIFICATION)
    await serving.predict(serving.choose(M, Task.TEXT_CLASSIFICATION, user="anna"), ["x", "y"])
    await serving.predict(serving.choose(M, Task.TEXT_CLASSIFICATION), ["x"])
    # Who names a version is not a user whom the route has sent there.
    await serving.predict(serving.choose(ModelReference("m", "1"), Task.TEXT_CLASSIFICATION, user="anna"), ["x"])
    slot = slot_of("m", "anna") + 1
    noted = [(each.route_etag, each.user_slot) for each in log.served]
    assert noted == [("7", slot), ("7", slot), ("7", 0), ("", slot)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnavailableError("the process died", reason="TRITON_UNAVAILABLE"), "UNAVAILABLE"),
        (ResourceExhaustedError("too many wait"), "RESOURCE_EXHAUSTED"),
        (RuntimeError("a defect"), "INTERNAL"),
    ],
)
async def test_a_call_that_fails_is_noted_with_its_version(error: Exception, code: str) -> None:
    server, log, serving = parts(Task.TEXT_CLASSIFICATION)
    server.error = error
    with pytest.raises(type(error)):
        await serving.predict(serving.choose(M, Task.TEXT_CLASSIFICATION, user="anna"), ["x", "y"])
    (failed,) = log.served
    assert (failed.code, failed.model_version, failed.method) == (code, "models/m/versions/1", "predict")
    assert (failed.route_etag, failed.user_slot) == ("7", slot_of("m", "anna") + 1)


async def test_an_answer_that_breaks_off_is_noted_as_failed_alone() -> None:
    server, log, serving = parts(Task.GENERATION)
    server.error = UnavailableError("the process died")
    with pytest.raises(UnavailableError):
        async for _ in serving.generate(serving.choose(M, Task.GENERATION), Prompt(text="x"), Sampling()):
            pass
    assert [(each.code, each.method) for each in log.served] == [("UNAVAILABLE", "generate")]


async def test_a_request_that_is_at_fault_says_nothing_of_the_version() -> None:
    server, log, serving = parts(Task.TEXT_CLASSIFICATION)
    server.error = InvalidArgumentError("too long")
    with pytest.raises(InvalidArgumentError):
        await serving.predict(serving.choose(M, Task.TEXT_CLASSIFICATION), ["x"])
    assert log.served == []


def test_a_failed_call_is_an_event_of_its_own() -> None:
    events: list[OutgoingEvent] = []

    class Bus:
        def publish(self, topic: Topic, published: Sequence[OutgoingEvent]) -> None:
            events.extend(published)

    log = BackgroundServedLog(Bus(), CollectorRegistry())
    version, now = RoutedVersion("m", 1, Task.GENERATION), datetime.now(UTC)
    log.add([Served.of_failure(version, "generate", UnavailableError("gone", reason="WHY"), 5.0, now)])
    log.close()
    (event,) = events
    assert isinstance(event.message, PredictionFailed)
    assert (event.message.code, event.message.reason, event.message.answer) == ("UNAVAILABLE", "WHY", event.key)
