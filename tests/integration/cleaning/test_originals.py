"""Originals of private records in the real service: a planted mark is in no file of its database, and is explained."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
from tidemill.cleaning.v1 import cleaning_service_pb2 as pb
from tidemill.ingest.v1.ingest_events_pb2 import RecordIngested
from tidemill.ingest.v1.source_import_pb2 import SourcePolicy

from services.kit.bus.kafka import KafkaEventPublisher
from services.kit.bus.port import OutgoingEvent
from services.kit.bus.topics import RECORDS_RAW
from tests.integration.cleaning.bus import raw_event
from tests.integration.cleaning.conftest import CleaningProcess
from tests.integration.cleaning.test_service import build, operator, publisher, put, watch
from tests.waiting import wait_until

__all__ = ["publisher"]

pytestmark = pytest.mark.real
MARK = "kingfisher-4711"
SOURCE = "secretive"


def _event(
    record_id: str,
    text: str,
    originals: SourcePolicy.Originals.ValueType = SourcePolicy.ORIGINALS_UNSPECIFIED,
    tenant: str = "",
    **attributes: str,
) -> OutgoingEvent:
    event = raw_event(record_id, SOURCE, text, "imports/s", **attributes)
    message = event.message
    assert isinstance(message, RecordIngested)
    message.originals = originals
    message.record.tenant = tenant
    return event


def _files_with_mark(cleaning: CleaningProcess) -> list[str]:
    files = Path(cleaning.folder).glob("cleaning.sqlite*")
    return [file.name for file in files if MARK.encode() in file.read_bytes()]


def _explained(cleaning: CleaningProcess, record_id: str) -> pb.ExplainRecordResponse:
    request = pb.ExplainRecordRequest(record_id=record_id, source=SOURCE)
    return cleaning.stub().ExplainRecord(request, timeout=20)


def test_a_mark_in_a_private_record_is_in_no_file_of_the_database(
    cleaning: CleaningProcess, publisher: KafkaEventPublisher
) -> None:
    put(
        cleaning, SOURCE, operator("regex_replace", pattern="king[a-z]+-[0-9]+", replacement="[BIRD]"), sources=[SOURCE]
    )
    publisher.publish(
        RECORDS_RAW,
        [
            _event("private", f"a {MARK} flew", data_class="private", topic=MARK, tenant="acme"),
            _event("none", f"no {MARK} stayed", SourcePolicy.ORIGINALS_NONE),
            _event("open", "an open text"),
        ],
    )
    version = watch(cleaning, build(cleaning, SOURCE, {"imports/s": 3}))[-1]
    assert version.train_count + version.holdout_count == 3
    assert _files_with_mark(cleaning) == []

    private = _explained(cleaning, "private")
    assert (private.original, private.tenant) == (pb.ORIGINAL_KEEPING_ENCRYPTED, "acme")
    assert private.datasets[0].effects[0].changes[0].edits[0].before == MARK
    none = _explained(cleaning, "none")
    assert none.original == pb.ORIGINAL_KEEPING_NONE
    assert (none.datasets[0].text, len(none.datasets[0].effects)) == ("no [BIRD] stayed", 0)
    assert _explained(cleaning, "open").original == pb.ORIGINAL_KEEPING_PLAIN
    counted = pb.CountRecordsRequest(sources=[SOURCE], tenants=["acme"])
    assert cleaning.stub().CountRecords(counted, timeout=20).count == 1

    # A recipe that changes cleans what is encrypted, and says what it could not clean.
    put(cleaning, SOURCE, operator("normalize_whitespace"), sources=[SOURCE])
    version = watch(cleaning, build(cleaning, SOURCE, {"imports/s": 3}, request_id="again"))[-1]
    assert dict(version.rejected_by_reason) == {"original_not_kept": 1}
    assert _explained(cleaning, "private").datasets[0].text == f"a {MARK} flew"
    (effect,) = _explained(cleaning, "none").datasets[0].effects
    assert effect.rejected_reason == "original_not_kept"
    assert _files_with_mark(cleaning) == []


def test_a_key_that_is_gone_stops_the_service_until_it_is_back(
    cleaning: CleaningProcess, publisher: KafkaEventPublisher
) -> None:
    publisher.publish(RECORDS_RAW, [_event("kept", f"the {MARK}", SourcePolicy.ORIGINALS_ENCRYPTED)])
    put(cleaning, "kept", sources=[SOURCE])
    wait_until(lambda: _explained(cleaning, "kept") if _is_there(cleaning) else None, "the record", 60)
    file = Path(cleaning.folder) / "keys" / "originals"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = file.read_text(encoding="utf-8")
    assert re.fullmatch("[0-9a-f]{64}\n", key)
    file.unlink()
    cleaning.stop()
    with pytest.raises(AssertionError, match="is gone"):
        cleaning.start()
    assert not file.exists()
    file.write_text(key, encoding="utf-8")
    file.chmod(0o600)
    cleaning.start()
    assert _explained(cleaning, "kept").original == pb.ORIGINAL_KEEPING_ENCRYPTED


def _is_there(cleaning: CleaningProcess) -> bool:
    return cleaning.stub().CountRecords(pb.CountRecordsRequest(sources=[SOURCE]), timeout=20).count >= 4
