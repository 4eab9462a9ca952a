"""Patterns that once froze cleaning: the service keeps answering other callers, also after a restart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import struct_pb2
from tidemill.cleaning.v1 import cleaning_service_pb2 as pb
from tidemill.cleaning.v1 import cleaning_service_pb2_grpc as stubs
from tidemill.cleaning.v1 import dataset_pb2

from infra.stack.testing import running_parts
from services.kit.bus.kafka import ensure_topics
from tests.service_process import ServiceProcess
from tests.waiting import wait_until

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def cleaning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder: Path = tmp_path_factory.mktemp("hostile")
    with running_parts({"kafka"}, folder) as stack:
        ensure_topics(stack.kafka_bootstrap)
        settings = {
            "TIDEMILL_KAFKA_BOOTSTRAP": stack.kafka_bootstrap,
            "TIDEMILL_DATABASE_URL": f"sqlite:///{folder}/cleaning.sqlite",
            "TIDEMILL_ARTIFACTS_URL": f"file://{folder}/artifacts",
        }
        process = ServiceProcess("cleaning", folder, settings)
        process.start()
        yield process
        process.kill()


def replace(pattern: str, replacement: str = "") -> dataset_pb2.OperatorSpec:
    params = struct_pb2.Struct()
    params.update({"pattern": pattern, "replacement": replacement})
    return dataset_pb2.OperatorSpec(name="regex_replace", params=params)


def test_patterns_that_are_exponential_elsewhere_are_answered(cleaning: ServiceProcess) -> None:
    stub = stubs.CleaningServiceStub(cleaning.channel())
    text = "a" * 400_000 + "!"
    answer = stub.CleanText(pb.CleanTextRequest(text=text, operators=[replace("(a+)+$")]), timeout=30)
    assert answer.text == text
    tenfold = replace("a", "a" * 1000)
    grown = stub.CleanText(pb.CleanTextRequest(text="a" * 4000, operators=[tenfold] * 3), timeout=30)
    assert (grown.text, grown.rejected_reason) == ("", "too_large")


@pytest.mark.slow
def test_others_are_answered_while_costly_texts_are_cleaned(cleaning: ServiceProcess) -> None:
    # Quadratic in RE2, too: each of these runs until its budget of CPU time is used up.
    costly = pb.CleanTextRequest(text="a" * 500_000, operators=[replace("a*b|a", "c")])
    stub = stubs.CleaningServiceStub(cleaning.channel())
    calls = [stub.CleanText.future(costly, timeout=300) for _ in range(3)]
    answered = 0
    while not all(call.done() for call in calls):
        assert not stub.ListDatasets(pb.ListDatasetsRequest(), timeout=20).datasets
        answered += 1
        time.sleep(0.1)
    assert answered > 3
    assert {call.result().rejected_reason for call in calls} == {"too_costly"}


def test_more_costly_texts_than_can_wait_are_refused_with_a_retry(cleaning: ServiceProcess) -> None:
    # Seconds of work each: those that have begun are not stopped by a cancel.
    costly = pb.CleanTextRequest(text="a" * 200_000, operators=[replace("a*b|a", "c")])
    stub = stubs.CleaningServiceStub(cleaning.channel())
    calls = [stub.CleanText.future(costly, timeout=300) for _ in range(80)]
    wait_until(lambda: any(call.done() for call in calls), "the first refusal")
    refused = {call.code() for call in calls if call.done()}
    assert refused == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    for call in calls:
        call.cancel()
    # Waiting work is dropped with its callers, so the next request does not wait for it.
    answer = stub.CleanText(pb.CleanTextRequest(text="b", operators=[replace("a")]), timeout=120)
    assert answer.text == "b"


def test_a_recipe_with_such_a_pattern_outlives_a_restart(cleaning: ServiceProcess) -> None:
    stub = stubs.CleaningServiceStub(cleaning.channel())
    spec = dataset_pb2.DatasetSpec(sources=["hostile"], operators=[replace("(a+)+$")])
    stub.PutDataset(pb.PutDatasetRequest(name="datasets/hostile", spec=spec), timeout=20)
    cleaning.kill()
    cleaning.start()
    request = pb.CleanTextRequest(text="a" * 100_000 + "!", dataset="datasets/hostile")
    answer = stubs.CleaningServiceStub(cleaning.channel()).CleanText(request, timeout=30)
    assert len(answer.text) == 100_001
