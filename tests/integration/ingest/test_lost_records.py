"""What Kafka deletes while cleaning is unavailable is counted and pulled again, and then nothing is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
import yaml
from tidemill.cleaning.v1 import cleaning_service_pb2 as cleaning_pb
from tidemill.cleaning.v1 import cleaning_service_pb2_grpc as cleaning_grpc
from tidemill.cleaning.v1.dataset_pb2 import DatasetVersion
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb
from tidemill.pipeline.v1.cycle_pb2 import Cycle, PipelineSpec, Stage
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub

from gateway.cli.pipeline_file import load_pipeline
from services.kit.bus.losses import noted_losses
from services.kit.bus.topics import RECORDS_RAW
from tests.conftest import ROOT
from tests.faults.reconciler import Ledger, compare, snapshot_records
from tests.integration.ingest.conftest import IngestProcess
from tests.retention import delete_unread, wait_until_read
from tests.service_process import ServiceProcess
from tests.waiting import wait_for

pytestmark = pytest.mark.real

_NAME = "retained"
_COUNT, _KEPT = 500, 152
_GROUP = "tidemill-cleaning"


@pytest.fixture
def cleaning(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("cleaning")
    settings = {
        "TIDEMILL_KAFKA_BOOTSTRAP": kafka_bootstrap,
        "TIDEMILL_DATABASE_URL": f"sqlite:///{folder}/cleaning.sqlite",
        "TIDEMILL_ARTIFACTS_URL": f"file://{folder}/artifacts",
        "TIDEMILL_LOST_PATIENCE_S": "2",
    }
    process = ServiceProcess("cleaning", folder, settings)
    process.start()
    yield process
    process.kill()


@pytest.fixture
def pipeline(
    kafka_bootstrap: str, ingest: IngestProcess, cleaning: ServiceProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PipelineServiceStub]:
    """The pipeline service with the real ingest and cleaning; training and inference are unavailable."""
    folder = tmp_path_factory.mktemp("pipeline")
    settings = {
        "TIDEMILL_KAFKA_BOOTSTRAP": kafka_bootstrap,
        "TIDEMILL_DATABASE_URL": f"sqlite:///{folder}/pipeline.sqlite",
        "TIDEMILL_INGEST_ADDRESS": f"127.0.0.1:{ingest.port}",
        "TIDEMILL_CLEANING_ADDRESS": f"127.0.0.1:{cleaning.port}",
        "TIDEMILL_TRAINING_ADDRESS": "127.0.0.1:1",
        "TIDEMILL_INFERENCE_ADDRESS": "127.0.0.1:1",
    }
    process = ServiceProcess("pipeline", folder, settings)
    process.start()
    yield PipelineServiceStub(process.channel())
    process.kill()


def spec_for(source: Path) -> PipelineSpec:
    """The example pipeline of reviews, on another source and without operators that drop records."""
    value = yaml.safe_load((ROOT / "pipelines" / "reviews.yaml").read_text(encoding="utf-8"))
    value["name"] = _NAME
    value["sources"] = [{"source": _NAME, "json_lines": {"uri": str(source), "id_field": "id"}}]
    value["dataset"] = {
        "name": f"datasets/{_NAME}",
        "operators": ["normalize_whitespace"],
        "holdout": {"fraction": 0.1},
    }
    file = source.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(value), encoding="utf-8")
    return load_pipeline(file).spec


def stage(cycle: Cycle, name: str) -> Stage:
    return next(each for each in cycle.stages if each.name == name)


def test_every_record_of_a_source_arrives_though_the_bus_lost_most_of_them(
    pipeline: PipelineServiceStub, cleaning: ServiceProcess, kafka_bootstrap: str, tmp_path: Path
) -> None:
    source, ledger = tmp_path / "records.jsonl", Ledger()
    rows = {str(number): f"the text of record {number}" for number in range(_COUNT)}
    source.write_text("".join(json.dumps({"id": record, "text": text}) + "\n" for record, text in rows.items()))
    for record, text in rows.items():
        ledger.accepted(record, text)
    wait_until_read(kafka_bootstrap, RECORDS_RAW, _GROUP)
    begun = pipeline.CreateCycle(pb.CreateCycleRequest(spec=spec_for(source)), timeout=60).cycle

    def now() -> Cycle:
        return pipeline.GetCycle(pb.GetCycleRequest(name=begun.name), timeout=10).cycle

    cleaning.kill()
    wait_for(now, lambda cycle: stage(cycle, "collect").state == Stage.STATE_SUCCEEDED, "the end of the import")
    lost = delete_unread(kafka_bootstrap, RECORDS_RAW, _GROUP, _KEPT)
    assert lost == _COUNT - _KEPT, "cleaning read some of it before it was killed"
    cleaning.start()
    # Training is unavailable, so the cycle stays there.
    ended = wait_for(now, lambda cycle: stage(cycle, "clean").state == Stage.STATE_SUCCEEDED, "the data set")

    finding = compare(
        ended.dataset_version.name,
        ledger.acknowledged,
        snapshot_records(Path(urlparse(ended.dataset_version.uri).path)),
    )
    assert finding.sound, finding
    assert f"the bus had lost {lost} messages, so {_NAME} was pulled again" in stage(ended, "clean").summary

    # The loss itself is an error with its count and what to do about it.
    dataset = cleaning_grpc.CleaningServiceStub(cleaning.channel())
    request = cleaning_pb.GetDatasetVersionRequest(name=f"datasets/{_NAME}/versions/1")
    first = dataset.GetDatasetVersion(request, timeout=10).dataset_version
    assert (first.state, first.failure.reason) == (DatasetVersion.STATE_FAILED, "RECORDS_LOST")
    assert f"up to {lost} messages" in first.failure.message
    assert "`resend`" in first.failure.message
    (noted,) = noted_losses(cleaning.folder)
    assert (noted.topic, noted.messages) == (RECORDS_RAW.name, lost)
    assert "pulls their sources again" in noted.remedy
