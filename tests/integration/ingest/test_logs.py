"""A log that is rotated while ingest is killed: on the running service, each line is one record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tidemill.ingest.v1 import ingest_service_pb2 as pb
from tidemill.ingest.v1.ingest_events_pb2 import RecordIngested
from tidemill.ingest.v1.source_import_pb2 import Import, LogFilesSource, SourceSpec

from services.kit.bus.topics import RECORDS_RAW
from tests.integration.ingest.conftest import IngestProcess
from tests.topics import read_all

pytestmark = pytest.mark.real


def write(path: Path, first: int, count: int) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps({"message": f"line {n}"}) + "\n" for n in range(first, first + count))


def collect(ingest: IngestProcess, folder: Path, *, kill: bool = False) -> Import:
    spec = SourceSpec(source="rotated", log_files=LogFilesSource(uri=f"{folder}/app.log*"))
    begun = ingest.stub().CreateImport(pb.CreateImportRequest(spec=spec), timeout=60).source_import
    if kill:
        ingest.kill()
        ingest.start()
    *_, last = ingest.stub().WatchImport(pb.WatchImportRequest(name=begun.name), timeout=90)
    return last.source_import


def test_each_line_is_one_record_through_rotation_and_a_kill(
    ingest: IngestProcess, kafka_bootstrap: str, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    write(log, 0, 3000)
    first = collect(ingest, tmp_path)
    assert (first.state, first.record_count, first.not_synchronized) == (Import.STATE_SUCCEEDED, 3000, "incremental")
    write(log, 3000, 3000)
    log.rename(tmp_path / "app.log.1")
    write(log, 6000, 3000)
    second = collect(ingest, tmp_path, kill=True)
    assert (second.state, second.record_count) == (Import.STATE_SUCCEEDED, 6000)
    assert collect(ingest, tmp_path).record_count == 0
    found: dict[str, str] = {}
    for headers, value in read_all(kafka_bootstrap, RECORDS_RAW):
        if headers.get("ce_type") == RecordIngested.DESCRIPTOR.full_name.encode():
            record = RecordIngested.FromString(value).record
            if record.source == "rotated":
                found[record.record_id] = record.text
    assert sorted(found.values()) == sorted(f"line {n}" for n in range(9000))
