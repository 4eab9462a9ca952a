"""The ways into a mesh that lead through Kafka: topics that other producers write to, as CloudEvents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from services.kit.bus.topics import FEEDBACK_INBOUND, INBOUND, Topic
from tests.load.caller import SOURCE, Caller, Door


def _records(caller: Caller, mark: str) -> None:
    text = f"an event from outside {mark}"
    caller.ledgers.inbound.sent(mark, text)
    _publish(caller, INBOUND, mark, {"source": SOURCE, "record_id": mark, "text": text})
    caller.ledgers.inbound.accepted(mark, text)


def _feedback(caller: Caller, mark: str) -> None:
    correction = f"better {mark}"
    judgement = {"answer": caller.judged(mark), "rating": 0.5, "author": mark, "correction": correction}
    caller.ledgers.feedback.sent(mark, correction)
    _publish(caller, FEEDBACK_INBOUND, mark, judgement)
    caller.ledgers.feedback.accepted(mark, correction)


def _publish(caller: Caller, topic: Topic, mark: str, data: Mapping[str, Any]) -> None:
    attributes = {"ce_id": mark, "ce_source": "/load", "ce_type": "t", "ce_specversion": "1.0"}
    headers = [(key, value.encode()) for key, value in attributes.items()]
    caller.publish(topic.name, mark, json.dumps(data).encode(), [*headers, ("content-type", b"application/json")])


KAFKA_DOORS: Mapping[str, Door] = {
    "kafka records": Door(_records, (INBOUND.name,)),
    "kafka feedback": Door(_feedback, (FEEDBACK_INBOUND.name,)),
}
