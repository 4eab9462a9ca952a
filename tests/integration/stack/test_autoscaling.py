"""A mesh that gives cleaning a second process while records wait, and takes it back."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from kafka import KafkaAdminClient
from prometheus_client.parser import text_string_to_metric_families
from tidemill.cleaning.v1 import cleaning_service_pb2 as pb
from tidemill.cleaning.v1 import dataset_pb2
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import CleaningServiceStub

from infra.stack.state import ChildPhase, StackState, read_state
from infra.stack.testing import brokers, running_child, running_parts
from services.kit.bus.kafka import KafkaEventPublisher
from services.kit.bus.topics import RECORDS_CLEAN, RECORDS_RAW
from services.kit.telemetry.process_metrics import LABEL
from services.kit.telemetry.schema import BUS_CONSUMER_LAG
from tests.freezing import frozen
from tests.integration.cleaning.bus import raw_event
from tests.topics import read_all
from tests.waiting import wait_for

pytestmark = pytest.mark.real

RECORDS = 40_000


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StackState]:
    for name, value in (("CLEANING_PROCESSES", "1-2"), ("SCALE_UP_S", "0.5"), ("SCALE_DOWN_S", "4")):
        monkeypatch.setenv(f"TIDEMILL_{name}", value)
    with running_parts({"kafka", "cleaning"}, tmp_path, own=True) as stack:
        yield stack


def second(stack: StackState) -> ChildPhase:
    return read_state(stack.layout).children["cleaning-2"].phase


def members(bootstrap: str) -> int:
    """Members of cleaning's consumer group."""
    admin = KafkaAdminClient(**brokers(bootstrap).options())
    try:
        return len(admin.describe_groups(["tidemill-cleaning"])["tidemill-cleaning"]["members"])
    finally:
        admin.close()


def processes_with(stack: StackState, metric: str) -> set[str]:
    """Numbers of the processes of cleaning whose values of a metric the first one's port shows."""
    token = stack.layout.state.metrics_token.read_text()
    url = f"http://{stack.address('cleaning_metrics')}/metrics"
    text = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=10).text
    families = text_string_to_metric_families(text)
    return {sample.labels[LABEL] for family in families for sample in family.samples if sample.name == metric}


def test_a_second_process_comes_with_the_load_and_goes_and_each_record_counts_once(mesh: StackState) -> None:
    assert second(mesh) is ChildPhase.STANDBY
    assert running_child("cleaning-2", mesh.state).healthy
    with grpc.insecure_channel(mesh.address("cleaning")) as channel:
        stub = CleaningServiceStub(channel)
        spec = dataset_pb2.DatasetSpec(sources=["load"], operators=[dataset_pb2.OperatorSpec(name="fix_unicode")])
        stub.PutDataset(pb.PutDatasetRequest(name="datasets/load", spec=spec), timeout=20)
        publisher = KafkaEventPublisher(brokers(mesh.kafka_bootstrap), "ingest")
        # A fast process would keep up with what is published, and nothing would wait.
        with frozen(read_state(mesh.layout).children["cleaning"].pid):
            for start in range(0, RECORDS, 1000):
                numbers = range(start, start + 1000)
                publisher.publish(
                    RECORDS_RAW, [raw_event(f"r{n}", "load", f"Record {n} it's long.", "imports/load") for n in numbers]
                )
        publisher.close()
        wait_for(lambda: second(mesh), lambda phase: phase is ChildPhase.READY)
        wait_for(lambda: members(mesh.kafka_bootstrap), lambda count: count == 2)
        wait_for(lambda: processes_with(mesh, BUS_CONSUMER_LAG), lambda found: found == {"1", "2"})
        victim = read_state(mesh.layout).children["cleaning-2"].pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        request = pb.BuildDatasetVersionRequest(
            dataset="datasets/load", awaited_imports=[pb.AwaitedImport(name="imports/load", record_count=RECORDS)]
        )
        version = stub.BuildDatasetVersion(request, timeout=20).dataset_version
        for answer in stub.WatchDatasetVersion(pb.WatchDatasetVersionRequest(name=version.name), timeout=180):
            version = answer.dataset_version
    assert (version.state, version.records_in) == (version.STATE_READY, RECORDS), version
    wait_for(lambda: second(mesh), lambda phase: phase is ChildPhase.STANDBY)
    events = Counter(headers["ce_id"] for headers, _ in read_all(mesh.kafka_bootstrap, RECORDS_CLEAN))
    assert len(events) == RECORDS
    # The batches that the killed process had not marked as published, and no others.
    assert sum(events.values()) - RECORDS <= 2000
