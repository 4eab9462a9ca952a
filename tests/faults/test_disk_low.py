"""A disk that is nearly full: records are refused before anything breaks, and accepted again when there is room."""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tidemill.ingest.v1 import ingest_service_pb2 as pb
from tidemill.ingest.v1 import ingest_service_pb2_grpc as stubs
from tidemill.ingest.v1.ingest_events_pb2 import RecordIngested
from tidemill.ingest.v1.record_pb2 import Record
from tidemill.ingest.v1.source_import_pb2 import Import, JsonLinesSource, SourceSpec

from infra.stack.testing import running_parts
from services.kit.bus.kafka import ensure_topics
from services.kit.bus.topics import RECORDS_RAW
from services.kit.errors import ResourceExhaustedError
from services.kit.storage.disk import DiskGuard, default_reserve
from tests.faults.disk import WatchedDisk, watched_disk
from tests.faults.reconciler import compare, digest
from tests.service_process import ServiceProcess, free_port
from tests.topics import read_all
from tests.waiting import wait_until

_GIB = 2**30


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedDisk]:
    with watched_disk(tmp_path / "disk", monkeypatch) as watched:
        yield watched


@pytest.mark.parametrize(
    ("total", "reserve"),
    [(2 * _GIB, _GIB // 5), (20 * _GIB, _GIB), (100 * _GIB, 2 * _GIB), (4000 * _GIB, 10 * _GIB)],
)
def test_the_reserve_fits_the_disk(total: int, reserve: int) -> None:
    assert abs(default_reserve(total) - reserve) < 10


def test_a_low_disk_is_refused_and_logged_and_taken_again_when_there_is_room(
    disk: WatchedDisk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.kit.storage.disk._LOOK_S", 0.0)
    caplog.set_level(logging.INFO)
    guard = DiskGuard(disk.folder, disk.reserve)
    guard.check()
    disk.make_low()
    with pytest.raises(ResourceExhaustedError, match="no new data is accepted") as caught:
        guard.check()
    assert caught.value.reason == "DISK_LOW"
    assert caught.value.retry_after_s is not None
    disk.free()
    guard.check()
    assert "new records are refused" in caplog.text
    assert "the disk has room again" in caplog.text


@pytest.mark.real
def test_ingest_refuses_first_and_continues_by_itself(disk: WatchedDisk, tmp_path: Path) -> None:
    with running_parts({"kafka"}, tmp_path / "stack") as stack:
        ensure_topics(stack.kafka_bootstrap)
        metrics = free_port()
        ingest = ServiceProcess(
            "ingest",
            tmp_path,
            {
                "TIDEMILL_KAFKA_BOOTSTRAP": stack.kafka_bootstrap,
                "TIDEMILL_DATABASE_URL": f"sqlite:///{tmp_path}/ingest.sqlite",
                "TIDEMILL_METRICS_BIND": f"127.0.0.1:{metrics}",
                "TIDEMILL_SOURCE_ROOTS": str(tmp_path),
                "TIDEMILL_STATE": str(disk.folder),
                "TIDEMILL_DISK_RESERVE_BYTES": str(disk.reserve),
            },
        )
        ingest.start()
        try:
            stub = stubs.IngestServiceStub(ingest.channel())
            sent = {"before": _push(stub, "before")}
            disk.make_low()
            refusal = wait_until(lambda: _refusal(stub, sent), "the refusal")
            assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            info, retry = _details(refusal)
            assert info.reason == "DISK_LOW"
            assert retry.retry_delay.seconds > 0
            assert _gauge(metrics, "disk_free_bytes") < _gauge(metrics, "disk_reserve_bytes")
            waiting = _import(stub, tmp_path / "lines.jsonl")
            wait_until(lambda: "an import waits" in ingest.log.read_text(), "the import that waits")
            disk.free()
            sent["after"] = wait_until(lambda: _accepted(stub, "after"), "room") or ""
            *_, done = stub.WatchImport(pb.WatchImportRequest(name=waiting), timeout=60)
            assert done.source_import.state == Import.STATE_SUCCEEDED
            acknowledged = {record_id: digest(text) for text, record_id in sent.items()}
            events = [RecordIngested.FromString(value) for _, value in read_all(stack.kafka_bootstrap, RECORDS_RAW)]
            pushed = [(e.record.record_id, digest(e.record.text)) for e in events if not e.import_name]
            imported = [e for e in events if e.import_name == waiting]
            assert (finding := compare("records.raw", acknowledged, pushed)).sound, finding
            assert sorted(e.record.text for e in imported) == [f"line {i}" for i in range(3)]
        finally:
            ingest.kill()


def _push(stub: stubs.IngestServiceStub, text: str) -> str:
    """The id of an accepted record."""
    request = pb.IngestRecordsRequest(records=[Record(source="disk", text=text)], request_id=text)
    return str(stub.IngestRecords(request, timeout=20).record_ids[0])


def _accepted(stub: stubs.IngestServiceStub, text: str) -> str | None:
    """The same; None while the disk is low."""
    try:
        return _push(stub, text)
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return None


def _refusal(stub: stubs.IngestServiceStub, sent: dict[str, str]) -> Any:
    """The error of a push; None if it was still accepted, with the record added to `sent`."""
    text = f"probe {len(sent)}"
    try:
        sent[text] = _push(stub, text)
    except grpc.RpcError as error:
        return error
    return None


def _details(error: Any) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo]:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in rpc_status.from_call(error).details:
        detail.Unpack(info)
        detail.Unpack(retry)
    return info, retry


def _import(stub: stubs.IngestServiceStub, path: Path) -> str:
    path.write_text("".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(3)))
    spec = SourceSpec(source="lines", json_lines=JsonLinesSource(uri=str(path)))
    return str(stub.CreateImport(pb.CreateImportRequest(spec=spec), timeout=30).source_import.name)


def _gauge(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name}{{")).rsplit(" ", 1)[1])
