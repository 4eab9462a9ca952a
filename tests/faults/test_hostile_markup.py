"""Texts that open comments without end, which once froze cleaning: it cleans them, and answers others meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from tidemill.cleaning.v1 import cleaning_service_pb2 as pb
from tidemill.cleaning.v1 import cleaning_service_pb2_grpc as stubs
from tidemill.cleaning.v1 import dataset_pb2

from infra.stack.state import StackState
from infra.stack.testing import brokers, running_parts
from services.kit.bus.kafka import KafkaEventPublisher, ensure_topics
from services.kit.bus.topics import RECORDS_RAW
from services.kit.ids import new_id
from tests.integration.cleaning.bus import raw_event
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.real

# What a recipe of texts from the web has.
OPERATORS = [
    dataset_pb2.OperatorSpec(name=name)
    for name in ("fix_unicode", "strip_html", "mask_pii", "normalize_whitespace", "repetition_filter")
]
HOSTILE = ("<!--", "<!-- x ", "<!--<p>", "&lt;!--")
PATIENCE_S = 20
"""For one call; a service that is frozen answers none in minutes."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackState]:
    with running_parts({"kafka"}, tmp_path_factory.mktemp("markup")) as running:
        ensure_topics(running.kafka_bootstrap)
        yield running


@pytest.fixture(scope="module")
def cleaning(stack: StackState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder: Path = tmp_path_factory.mktemp("cleaning")
    settings = {
        "TIDEMILL_KAFKA_BOOTSTRAP": stack.kafka_bootstrap,
        "TIDEMILL_DATABASE_URL": f"sqlite:///{folder}/cleaning.sqlite",
        "TIDEMILL_ARTIFACTS_URL": f"file://{folder}/artifacts",
    }
    process = ServiceProcess("cleaning", folder, settings)
    process.start()
    yield process
    process.kill()


def listed_until(stub: stubs.CleaningServiceStub, done: Callable[[], bool]) -> int:
    """How often the data sets were listed until something was done; a call that is not answered fails the test."""
    answers = 0
    while not done():
        stub.ListDatasets(pb.ListDatasetsRequest(), timeout=PATIENCE_S)
        answers += 1
    return answers


def test_others_are_answered_while_comments_without_end_are_cleaned(cleaning: ServiceProcess) -> None:
    stub = stubs.CleaningServiceStub(cleaning.channel())
    texts = [unit * (480_000 // len(unit)) for unit in HOSTILE for _ in range(4)]
    calls = [stub.CleanText.future(pb.CleanTextRequest(text=text, operators=OPERATORS), timeout=300) for text in texts]
    answers = listed_until(stub, lambda: all(call.done() for call in calls))
    assert {call.code() for call in calls} == {grpc.StatusCode.OK}
    assert answers > 3


def test_others_are_answered_while_such_records_arrive_and_are_built(
    stack: StackState, cleaning: ServiceProcess
) -> None:
    stub = stubs.CleaningServiceStub(cleaning.channel())
    spec = dataset_pb2.DatasetSpec(sources=["markup"], operators=OPERATORS)
    stub.PutDataset(pb.PutDatasetRequest(name="datasets/markup", spec=spec), timeout=PATIENCE_S)
    name = f"imports/{new_id()}"
    records = [
        raw_event(f"{number}", "markup", f"text {number} " + unit * (100_000 // len(unit)), name)
        for number, unit in enumerate(HOSTILE * 10)
    ]
    publisher = KafkaEventPublisher(brokers(stack.kafka_bootstrap), "ingest")
    try:
        publisher.publish(RECORDS_RAW, records)
    finally:
        publisher.close()
    awaited = [pb.AwaitedImport(name=name, record_count=len(records))]
    version = stub.BuildDatasetVersion(
        pb.BuildDatasetVersionRequest(dataset="datasets/markup", awaited_imports=awaited), timeout=PATIENCE_S
    ).dataset_version
    states = dataset_pb2.DatasetVersion.State
    found = [version]

    def built() -> bool:
        request = pb.GetDatasetVersionRequest(name=version.name)
        found.append(stub.GetDatasetVersion(request, timeout=PATIENCE_S).dataset_version)
        return found[-1].state in (states.STATE_READY, states.STATE_FAILED)

    assert listed_until(stub, built) > 3
    assert (found[-1].state, found[-1].records_in) == (states.STATE_READY, len(records))
