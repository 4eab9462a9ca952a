"""Captured answers and corrections of them on a real Kafka, with the service killed in the middle."""

from __future__ import annotations

import json
import operator
import threading
import uuid
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import grpc
import pytest
from tidemill.inference.v1.inference_events_pb2 import AnswerCaptured, PredictionServed
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1.cycle_pb2 import Cycle
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub

from infra.stack.testing import brokers
from services.kit.bus.kafka import KafkaEventPublisher
from services.kit.bus.port import OutgoingEvent
from services.kit.bus.topics import ANSWERS_CAPTURED, PREDICTIONS
from services.kit.clock import SystemClock
from services.kit.grpc.messages import timestamp
from services.kit.ids import new_id
from tests.integration.pipeline.conftest import Peers, PipelineProcess
from tests.integration.pipeline.test_service import spec, until
from tests.waiting import wait_for

pytestmark = pytest.mark.real

ANSWERS = 300


def serve(kafka: str, model: str, answers: list[str]) -> None:
    """What a gateway publishes of answers, and some of it twice, as after a kill of the gateway."""
    publisher = KafkaEventPublisher(brokers(kafka), "gateway")
    for part in (answers, answers[::3]):
        served = [
            PredictionServed(
                answer=name,
                model_version=f"{model}/versions/1",
                method="generate",
                answer_time=timestamp(SystemClock().now()),
                role="serving",
            )
            for name in part
        ]
        publisher.publish(PREDICTIONS, [OutgoingEvent(item.answer, item) for item in served])
        kept = [AnswerCaptured(served=item, prompt=f"prompt {item.answer}", text="given") for item in served]
        publisher.publish(ANSWERS_CAPTURED, [OutgoingEvent(item.served.answer, item) for item in kept])
    publisher.close()


def test_no_correction_is_lost_and_none_counts_twice_when_the_service_is_killed(
    pipeline: PipelineProcess, stub: PipelineServiceStub, peers: Peers, kafka: str
) -> None:
    peers.trained.set()
    name = f"loop-{uuid.uuid4().hex[:8]}"
    wanted = spec(name)
    wanted.rollout.model = model = f"models/{name}"
    wanted.capture.keep_days = 7
    wanted.feedback.corrections.weight = 3
    wanted.feedback.per_person_cap = ANSWERS
    first = stub.CreateCycle(pb.CreateCycleRequest(spec=wanted), timeout=30).cycle
    until(stub, first.name, lambda cycle: cycle.state != Cycle.STATE_RUNNING)
    answers = [f"answers/{new_id()}" for _ in range(ANSWERS)]
    half = ANSWERS // 2
    serve(kafka, model, answers[:half])
    sent: list[int] = []

    def correct_all() -> None:
        """Sends batches of ten until each is recorded; some are sent twice, and some come before their answers."""
        for start in (*range(0, ANSWERS, 10), *range(0, ANSWERS, 30)):
            drafts = [
                pb.Judgement(request_id=f"r-{answer}", answer=answer, rating=-1, correction=f"right {answer}")
                for answer in answers[start : start + 10]
            ]
            while True:
                try:
                    request = pb.BatchRecordFeedbackRequest(judgements=drafts)
                    stub.BatchRecordFeedback(request, timeout=60, wait_for_ready=True)
                    break
                except grpc.RpcError as error:
                    call: Any = error
                    if call.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED):
                        raise
            sent.append(start)

    sender = threading.Thread(target=correct_all, daemon=True)
    sender.start()
    for reached in (5, 15, 25):
        wait_for(lambda: len(sent), partial(operator.le, reached))
        pipeline.kill()
        if reached == 15:
            serve(kafka, model, answers[half:])
        pipeline.start()
    sender.join(120)
    assert not sender.is_alive()

    def captured() -> int:
        found, token = 0, ""
        while True:
            request = pb.ListCapturedAnswersRequest(model=model, page_size=100, page_token=token)
            page = stub.ListCapturedAnswers(request, timeout=30, wait_for_ready=True)
            found, token = found + len(page.answers), page.next_page_token
            if not token:
                return found

    wait_for(captured, lambda count: count == ANSWERS)
    second = stub.CreateCycle(pb.CreateCycleRequest(spec=wanted), timeout=30).cycle
    ended = until(stub, second.name, lambda cycle: cycle.state != Cycle.STATE_RUNNING)
    assert ended.state == Cycle.STATE_SUCCEEDED
    # The count from outside: the file that ingest is asked to import.
    source = peers.requests["CreateImportRequest"][-1].spec
    assert source.source == f"answers.{name}"
    lines = [json.loads(line) for line in Path(urlparse(source.json_lines.uri).path).read_text().splitlines()]
    assert Counter(line["record_id"] for line in lines) == Counter(answers)
    assert all(line["headline"] == f"right {line['record_id']}" for line in lines)
    assert all(line["text"] == f"prompt {line['record_id']}" for line in lines)
    assert {line["feedback_weight"] for line in lines} == {"3"}
    assert list(peers.requests["PutDatasetRequest"][-1].spec.feedback_sources) == [source.source]
    assert f"{ANSWERS} corrections" in ended.stages[0].summary
