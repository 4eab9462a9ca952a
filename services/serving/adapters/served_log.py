"""Served answers on the bus, in the background."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from prometheus_client import CollectorRegistry, Counter, Gauge
from tidemill.inference.v1 import inference_events_pb2 as events

from services.kit.bus.port import EventPublisher, OutgoingEvent
from services.kit.bus.topics import ANSWERS_CAPTURED, PREDICTIONS
from services.kit.errors import TidemillError, is_retryable
from services.kit.grpc.messages import timestamp
from services.kit.ids import sha256_hex
from services.kit.retrying import Backoff
from services.kit.telemetry.context import current_traceparent
from services.serving.adapters.answer_journal import AnswerJournal, PendingAnswer
from services.serving.app.ports import Served

logger = logging.getLogger(__name__)

_BATCH = 500
# Small batches cost the process that answers: with 50 ms a fifth of its requests a second went to them.
_LINGER_S = 0.25
# Captured texts that may wait for the bus, in characters; what is beyond is not captured, the answer's event is.
_CAPTURED_WAITING = 64 << 20


class BackgroundServedLog:
    """Implements `services.serving.app.ports.ServedLog` with a thread that publishes `PredictionServed`.

    Answers never wait for the broker. While the bus is unavailable, up to `capacity` events wait in memory; beyond
    that the oldest are dropped, counted in `prediction_events_dropped` and logged. What waits is in the
    journal as well: the next process publishes what one that was killed, or ended while the bus was unavailable, left.
    """

    def __init__(
        self,
        publisher: EventPublisher,
        registry: CollectorRegistry,
        journal: AnswerJournal | None = None,
        *,
        capacity: int = 100_000,
        captured_limit: int = _CAPTURED_WAITING,
    ) -> None:
        self._publisher = publisher
        self._capacity = capacity
        self._journal = journal
        self._waiting: deque[PendingAnswer] = deque(journal.take_over() if journal is not None else ())
        if self._waiting:
            logger.info("%d answers of an earlier process are published now", len(self._waiting))
        self._captured_limit = captured_limit
        self._captured_waiting = sum(map(_size, self._waiting))
        self._refusing = False
        self._changed = threading.Condition()
        self._closing = False
        self._dropped = Counter(
            "prediction_events_dropped", "Answers whose PredictionServed was given up", registry=registry
        )
        self._uncaptured = Counter(
            "answers_not_captured", "Answers whose text was not kept, for too much was waiting", registry=registry
        )
        if journal is not None:
            self._dropped.inc(journal.unreadable)
        Gauge(
            "prediction_events_waiting", "Answers whose PredictionServed is still to be published", registry=registry
        ).set_function(lambda: float(len(self._waiting)))
        self._thread = threading.Thread(target=self._run, name="served-log", daemon=True)
        self._thread.start()

    def add(self, served: Sequence[Served]) -> None:
        """See the port; call it in the request's own trace."""
        traceparent = current_traceparent()
        with self._changed:
            pending = [PendingAnswer(self._within_limit(item), traceparent) for item in served]
            if self._journal is not None:
                self._journal.add(pending)
            was_empty = not self._waiting
            self._waiting.extend(pending)
            lost = max(0, len(self._waiting) - self._capacity)
            for _ in range(lost):
                self._captured_waiting -= _size(self._waiting.popleft())
            # Not at every answer: the thread would wake up for each, only to see that its batch is not full yet.
            if was_empty or len(self._waiting) >= _BATCH:
                self._changed.notify()
        if lost:
            self._give_up(lost, f"the bus is unavailable and {self._capacity} are waiting already")

    def _within_limit(self, item: Served) -> Served:
        """The answer, without what was captured of it where too much is waiting."""
        size = item.captured.size if item.captured is not None else 0
        if self._captured_waiting + size > self._captured_limit:
            self._uncaptured.inc()
            if not self._refusing:
                logger.error("answers are not captured: %d characters wait for the bus", self._captured_waiting)
            self._refusing = True
            return replace(item, captured=None)
        self._captured_waiting += size
        return item

    def close(self, timeout_s: float = 10.0) -> None:
        """Publishes the waiting events; what cannot be published in this time is counted and logged."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            left = len(self._waiting)
            self._waiting.clear()
            journal, self._journal = self._journal, None
            if journal is not None:
                journal.close()
        if left and journal is not None:
            logger.warning("%d answers wait in the journal for the next process", left)
        elif left:
            self._give_up(left, "the service ended while the bus was unavailable")

    def _run(self) -> None:
        backoff = Backoff(0.2, longest_s=5.0)
        while True:
            batch = self._next_batch()
            if not batch:
                return
            try:
                self._publish(batch)
                self._note_published(batch)
                backoff.reset()
            except TidemillError as error:
                if self._closing and self._journal is not None and is_retryable(error):
                    self._put_back(batch)
                    return
                if self._closing or not is_retryable(error):
                    self._give_up(len(batch), error.message)
                    self._note_published(batch)
                    continue
                self._put_back(batch)
                pause = backoff.next_s()
                logger.warning("%d answers wait for the bus, retrying in %.1f s: %s", len(batch), pause, error.message)
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, pause)
            except Exception as error:
                logger.exception("PredictionServed could not be published")
                self._give_up(len(batch), type(error).__name__)
                self._note_published(batch)

    def _publish(self, batch: Sequence[PendingAnswer]) -> None:
        """Publishes both events of each; a repeat after the first succeeded publishes equal events again."""
        self._publisher.publish(PREDICTIONS, [_event(item) for item in batch])
        captured = [event for item in batch if (event := _captured_event(item)) is not None]
        if captured:
            self._publisher.publish(ANSWERS_CAPTURED, captured)

    def _next_batch(self) -> list[PendingAnswer]:
        """Waiting events, at most a batch; empty when no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._closing:
                self._changed.wait_for(lambda: self._closing or len(self._waiting) >= _BATCH, _LINGER_S)
            return [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]

    def _put_back(self, batch: Sequence[PendingAnswer]) -> None:
        with self._changed:
            self._waiting.extendleft(reversed(batch))

    def _note_published(self, batch: Sequence[PendingAnswer]) -> None:
        with self._changed:
            self._captured_waiting -= sum(map(_size, batch))
            self._refusing = False
            if self._journal is not None:
                self._journal.published(self._waiting)

    def _give_up(self, count: int, why: str) -> None:
        self._dropped.inc(count)
        logger.error("PredictionServed of %d answers was dropped: %s", count, why)


def _size(item: PendingAnswer) -> int:
    return item.served.captured.size if item.served.captured is not None else 0


def _event(waiting: PendingAnswer) -> OutgoingEvent:
    served = waiting.served
    message = _failure(served) if served.code else _message(served)
    event_id = sha256_hex(message.DESCRIPTOR.name, served.answer)
    return OutgoingEvent(served.answer, message, event_id=event_id, trace={"traceparent": waiting.traceparent})


def _captured_event(waiting: PendingAnswer) -> OutgoingEvent | None:
    served, captured = waiting.served, waiting.served.captured
    if captured is None:
        return None
    message = events.AnswerCaptured(
        served=_message(served),
        prompt=captured.prompt,
        conversation=captured.conversation,
        text=captured.text,
        tenant=captured.tenant,
        asked_by=captured.asked_by,
    )
    event_id = sha256_hex("AnswerCaptured", served.answer)
    return OutgoingEvent(served.answer, message, event_id=event_id, trace={"traceparent": waiting.traceparent})


def _message(served: Served) -> events.PredictionServed:
    return events.PredictionServed(
        answer=served.answer,
        model_version=served.model_version,
        method=served.method,
        label=served.label,
        score=served.score,
        prompt_tokens=served.prompt_tokens,
        completion_tokens=served.completion_tokens,
        latency_ms=served.latency_ms,
        answer_time=timestamp(served.answer_time),
        role=served.role,
        shadowed_answer=served.shadowed_answer,
        route_etag=served.route_etag,
        user_slot=served.user_slot,
    )


def _failure(served: Served) -> events.PredictionFailed:
    return events.PredictionFailed(
        answer=served.answer,
        model_version=served.model_version,
        method=served.method,
        code=served.code,
        reason=served.reason,
        latency_ms=served.latency_ms,
        fail_time=timestamp(served.answer_time),
        role=served.role,
        shadowed_answer=served.shadowed_answer,
        route_etag=served.route_etag,
        user_slot=served.user_slot,
    )
