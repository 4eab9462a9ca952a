from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.admin import ConfigResource, ConfigResourceType
from tidemill.inference.v1.inference_events_pb2 import PredictionServed
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1.cycle_pb2 import Cycle, PipelineSpec, Rollout
from tidemill.pipeline.v1.pipeline_events_pb2 import CycleEnded, FeedbackRecorded
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub

from infra.stack.state import StackState
from infra.stack.testing import REUSE, brokers
from services.kit.bus.kafka import KafkaEventPublisher
from services.kit.bus.port import OutgoingEvent
from services.kit.bus.topics import FEEDBACK, FEEDBACK_INBOUND, PIPELINE_EVENTS, PREDICTIONS, TOPICS
from tests.freezing import frozen
from tests.integration.pipeline.conftest import Peers, PipelineProcess
from tests.waiting import wait_for

pytestmark = pytest.mark.real


def spec(name: str) -> PipelineSpec:
    value = PipelineSpec(name=name)
    value.sources.add(source="bbc").text_folder.uri = "/bbc"
    value.dataset.name = "datasets/d"
    value.dataset.operators.add(name="exact_dedup")
    training = value.training
    training.base_model, training.model_name = "tiny", "headlines"
    training.generation.prompt_template, training.generation.target_field = "{text}", "headline"
    training.generation.max_input_tokens, training.generation.max_target_tokens = 64, 16
    training.lora.r, training.lora.alpha = 4, 8
    training.optimization.max_steps, training.optimization.batch_size = 1, 1
    training.optimization.learning_rate = 0.001
    training.compression.variants.append("int8")
    value.gate.max_quality_loss = 0.05
    value.rollout.model = "models/headlines"
    return value


def create(stub: PipelineServiceStub, name: str) -> Cycle:
    return stub.CreateCycle(pb.CreateCycleRequest(spec=spec(name)), timeout=30).cycle


def until(stub: PipelineServiceStub, name: str, reached: Callable[[Cycle], bool]) -> Cycle:
    return wait_for(lambda: stub.GetCycle(pb.GetCycleRequest(name=name), timeout=10).cycle, reached)


def trains(cycle: Cycle) -> bool:
    return bool(cycle.stages[2].resources)


def test_a_cycle_is_watched_to_its_end_and_reported_on_the_bus(
    stub: PipelineServiceStub, peers: Peers, kafka: str
) -> None:
    peers.trained.set()
    created = create(stub, "recorded")
    states = [answer.cycle for answer in stub.WatchCycle(pb.WatchCycleRequest(name=created.name), timeout=60)]
    ended = states[-1]
    assert ended.state == Cycle.STATE_SUCCEEDED
    expected = spec("recorded")
    expected.rollout.preference = Rollout.PREFERENCE_FASTEST
    assert ended.spec == expected
    assert ended.stages[0].reused
    assert ended.dataset_version.train_count == 2
    assert [verdict.chosen for verdict in ended.verdicts] == [False, True]
    assert ended.model_version == "models/headlines/versions/1"
    assert len(ended.trace_id) == 32
    assert peers.requests["CreateRunRequest"][0].spec.dataset.name == "datasets/d/versions/1"
    assert peers.requests["PublishModelRequest"][0].run == "runs/r1"
    consumer = KafkaConsumer(PIPELINE_EVENTS.name, bootstrap_servers=kafka, auto_offset_reset="earliest")
    event = next(e for m in consumer if (e := CycleEnded.FromString(m.value)).cycle == created.name)
    consumer.close()
    assert (event.state, event.model_version) == ("STATE_SUCCEEDED", "models/headlines/versions/1")


def test_kill_9_in_the_middle_of_training_continues_and_starts_nothing_new(
    pipeline: PipelineProcess, stub: PipelineServiceStub, peers: Peers
) -> None:
    name = create(stub, "killed").name
    until(stub, name, trains)
    pipeline.kill()
    peers.trained.set()
    pipeline.start()
    ended = until(stub, name, lambda cycle: cycle.state != Cycle.STATE_RUNNING)
    assert ended.state == Cycle.STATE_SUCCEEDED
    assert len({request.request_id for request in peers.requests["CreateRunRequest"]}) == 1
    assert len({request.request_id for request in peers.requests["PublishModelRequest"]}) == 1


def test_a_cancelled_cycle_cancels_its_run(stub: PipelineServiceStub, peers: Peers) -> None:
    name = create(stub, "cancelled").name
    until(stub, name, trains)
    stub.CancelCycle(pb.CancelCycleRequest(name=name), timeout=10)
    assert until(stub, name, lambda cycle: cycle.state != Cycle.STATE_RUNNING).state == Cycle.STATE_CANCELLED
    assert [request.name for request in peers.requests["CancelRunRequest"]] == ["runs/r1"]


def test_invalid_requests_name_their_fields(stub: PipelineServiceStub) -> None:
    wrong = spec("wrong")
    wrong.gate.max_quality_loss = 2
    with pytest.raises(grpc.RpcError) as caught:
        stub.CreateCycle(pb.CreateCycleRequest(spec=wrong), timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    call: Any = caught.value
    status = rpc_status.from_call(call)
    assert status is not None
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    assert [violation.field for violation in bad.field_violations] == ["spec.gate.max_quality_loss"]


def test_a_cycle_that_does_not_exist_is_not_found(stub: PipelineServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetCycle(pb.GetCycleRequest(name="pipelines/none/cycles/none"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_the_running_service_keeps_what_its_readers_have_not_read(stub: PipelineServiceStub, kafka: str) -> None:
    """By age alone Kafka would delete it while a reader is down."""
    topics = [topic.name for topic in TOPICS if "tidemill-pipeline" in topic.readers]
    assert {PREDICTIONS.name, FEEDBACK_INBOUND.name} <= set(topics)
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    try:
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]

        def retention() -> dict[str, str]:
            found = admin.describe_configs(resources, config_filter="all")["topic"]
            return {topic: settings["retention.ms"]["value"] for topic, settings in found.items()}

        wait_for(
            retention, lambda found: found == dict.fromkeys(topics, "-1"), "no limit of age on topics with readers"
        )
    finally:
        admin.close()


def test_feedback_meets_its_prediction_and_is_reported_on_the_bus(stub: PipelineServiceStub, kafka: str) -> None:
    answer = f"answers/{uuid.uuid4()}"
    publisher = KafkaEventPublisher(brokers(kafka), "inference")
    served = PredictionServed(answer=answer, model_version="models/headlines/versions/7", method="generate")
    publisher.publish(PREDICTIONS, [OutgoingEvent(answer, served)])
    publisher.close()
    request = pb.RecordFeedbackRequest(answer=answer, rating=-1, correction="Better", author="me", request_id=answer)
    kept = stub.RecordFeedback(request, timeout=10).feedback
    assert stub.RecordFeedback(request, timeout=10).feedback.name == kept.name
    request_of_model = pb.ListFeedbackRequest(model="models/headlines")
    wait_for(
        lambda: {item.name for item in stub.ListFeedback(request_of_model, timeout=10).feedback},
        lambda names: kept.name in names,
        "the feedback",
    )
    consumer = KafkaConsumer(FEEDBACK.name, bootstrap_servers=kafka, auto_offset_reset="earliest")
    event = next(e for m in consumer if (e := FeedbackRecorded.FromString(m.value)).answer == answer)
    consumer.close()
    assert (event.rating, event.correction, event.feedback) == (-1, "Better", kept.name)


@pytest.mark.skipif(REUSE in os.environ, reason="others use this Kafka")
def test_feedback_is_taken_at_once_while_the_bus_hangs_and_is_reported_when_it_is_back(
    stub: PipelineServiceStub, pipeline: PipelineProcess, stack: StackState
) -> None:
    answer = f"answers/{uuid.uuid4()}"
    with frozen(stack.children["kafka"].pid):
        # More than the service has threads: none of them may wait for the bus.
        names = [
            stub.RecordFeedback(pb.RecordFeedbackRequest(answer=answer, rating=1), timeout=10).feedback.name
            for _ in range(40)
        ]
        assert len(stub.ListFeedback(pb.ListFeedbackRequest(), timeout=10).feedback) >= 40
    consumer = KafkaConsumer(FEEDBACK.name, bootstrap_servers=stack.kafka_bootstrap, auto_offset_reset="earliest")
    published = (event.feedback for m in consumer if (event := FeedbackRecorded.FromString(m.value)).answer == answer)
    assert {next(published) for _ in names} == set(names)
    consumer.close()
