"""Dead letters on a real Kafka: replayed under the same id, while the reader is down, and across a kill of ingest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from kafka import KafkaProducer
from tidemill.cleaning.v1 import cleaning_service_pb2 as cleaning_pb
from tidemill.ingest.v1 import dead_letter_service_pb2 as pb
from tidemill.ingest.v1 import dead_letter_service_pb2_grpc as stubs
from tidemill.ingest.v1 import ingest_service_pb2
from tidemill.ingest.v1.dead_letter_pb2 import DeadLetter
from tidemill.ingest.v1.ingest_events_pb2 import RecordIngested
from tidemill.ingest.v1.source_import_pb2 import JsonLinesSource, SourceSpec

from infra.stack.testing import brokers
from services.kit.bus.cloudevents import encode
from services.kit.bus.kafka import KafkaEventPublisher
from services.kit.bus.port import Delivery, OutgoingEvent
from services.kit.bus.topics import INBOUND, RECORDS_RAW
from services.kit.errors import InvalidArgumentError
from tests.integration.cleaning.conftest import CleaningProcess
from tests.integration.ingest.conftest import IngestProcess
from tests.topics import read_all
from tests.waiting import wait_until

pytestmark = pytest.mark.real


def letters(ingest: IngestProcess) -> stubs.DeadLetterServiceStub:
    return stubs.DeadLetterServiceStub(ingest.channel())


def listed(ingest: IngestProcess, **wanted: object) -> list[DeadLetter]:
    request = pb.ListDeadLettersRequest(filter=pb.DeadLetterFilter(**wanted), page_size=200)  # type: ignore[arg-type]
    return list(letters(ingest).ListDeadLetters(request, timeout=30).dead_letters)


def replay(ingest: IngestProcess, *names: str) -> list[str]:
    """Why each was not replayed, empty if it was."""
    answer = letters(ingest).ReplayDeadLetters(pb.ReplayDeadLettersRequest(names=names), timeout=60)
    return [outcome.refused_reason for outcome in answer.outcomes]


@pytest.fixture
def publisher(kafka_bootstrap: str) -> Iterator[KafkaEventPublisher]:
    made = KafkaEventPublisher(brokers(kafka_bootstrap), "test")
    yield made
    made.close()


def refused_event(publisher: KafkaEventPublisher, mark: str) -> RecordIngested:
    """Puts an event of `tidemill.records.raw` into the dead letters, as cleaning would have refused it."""
    message = RecordIngested(arrival=1)
    message.record.source, message.record.record_id, message.record.text = mark, "1", f"text of {mark}"
    message.record.event_time.FromSeconds(1_790_000_000)
    [event] = encode([OutgoingEvent(f"sources/{mark}/records/1", message, event_id=f"id-{mark}")], "ingest")
    delivery = Delivery(RECORDS_RAW.name, 2, 7, event.key, event.value, dict(event.headers))
    publisher.dead_letter(delivery, InvalidArgumentError("refused by an older recipe", reason=mark))
    return message


def sent(bootstrap: str, mark: str) -> list[tuple[dict[str, bytes], bytes]]:
    wanted = f"id-{mark}".encode()
    return [(headers, value) for headers, value in read_all(bootstrap, RECORDS_RAW) if headers.get("ce_id") == wanted]


def test_what_ingest_refuses_is_listed_shown_and_replayed_as_it_came(
    ingest: IngestProcess, kafka_bootstrap: str, tmp_path: Path
) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka_bootstrap)
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"e1"),
        ("ce_source", b"/dlq-shop"),
        ("ce_type", b"t"),
        ("x", b"1"),
    ]
    for value in (b"not json {", b'{"no_text": 1}'):
        producer.send(INBOUND.name, key=b"k", value=value, headers=headers).get(30)
    producer.close()
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "fine"}) + "\nbroken\n")
    spec = SourceSpec(source="dlq-lines", json_lines=JsonLinesSource(uri=str(tmp_path / "a.jsonl")))
    begun = ingest.stub().CreateImport(ingest_service_pb2.CreateImportRequest(spec=spec), timeout=30).source_import

    def both() -> list[DeadLetter]:
        found = [
            letter for letter in listed(ingest, topic=INBOUND.name) if letter.reason in ("INVALID_JSON", "MISSING_TEXT")
        ]
        return found if len(found) >= 2 and listed(ingest, import_name=begun.name) else []

    newest, older = wait_until(both)[:2]
    assert (newest.reason, older.reason) == ("MISSING_TEXT", "INVALID_JSON")
    assert (newest.service, newest.state, newest.content, newest.key) == ("ingest", DeadLetter.STATE_OPEN, b"", b"")
    (piece,) = listed(ingest, import_name=begun.name)
    assert piece.location.endswith("a.jsonl:2")
    whole = letters(ingest).GetDeadLetter(pb.GetDeadLetterRequest(name=older.name), timeout=30).dead_letter
    assert (whole.content, whole.key, dict(whole.headers)) == (b"not json {", b"k", dict(headers))
    # It is refused again: another letter, with the same message and headers; the first is not open any more.
    assert replay(ingest, older.name, piece.name) == ["", "NO_SOURCE_TOPIC"]
    again = wait_until(
        lambda: [each for each in listed(ingest, reason="INVALID_JSON") if each.offset > older.offset and each.topic]
    )[0]
    shown = letters(ingest).GetDeadLetter(pb.GetDeadLetterRequest(name=again.name), timeout=30).dead_letter
    assert (shown.content, shown.key, dict(shown.headers)) == (whole.content, whole.key, dict(whole.headers))
    assert shown.state == DeadLetter.STATE_OPEN
    done = letters(ingest).GetDeadLetter(pb.GetDeadLetterRequest(name=older.name), timeout=30).dead_letter
    assert (done.state, done.actor) == (DeadLetter.STATE_REPLAYED, "mesh")
    since = listed(ingest, since=again.refuse_time)
    assert again.name in [each.name for each in since]
    assert older.name not in [each.name for each in since]


def found_in(cleaning: CleaningProcess, record_id: str) -> bool:
    request = cleaning_pb.GetRecordRequest(source="twice", record_id=record_id)
    try:
        cleaning.stub().GetRecord(request, timeout=30)
    except grpc.RpcError:
        return False
    return True


def test_a_replay_twice_and_while_the_reader_is_down_counts_once(
    ingest: IngestProcess,
    publisher: KafkaEventPublisher,
    kafka_bootstrap: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    message = refused_event(publisher, "twice")
    (letter,) = listed(ingest, reason="twice")
    # No cleaning runs: the topic keeps it until one does.
    assert replay(ingest, letter.name) == [""]
    assert replay(ingest, letter.name) == ["ALREADY_REPLAYED"]
    ((headers, value),) = sent(kafka_bootstrap, "twice")
    assert RecordIngested.FromString(value) == message
    assert not [name for name in headers if name.startswith("dlq_")]
    # Also one that was sent twice, because ingest was killed before it marked the letter, is one record.
    publisher.send_again(RECORDS_RAW, b"sources/twice/records/1", value, headers)
    # The last message of its partition: when it is there, the two before it were handled.
    last = RecordIngested.FromString(value)
    last.record.record_id = "2"
    publisher.publish(RECORDS_RAW, [OutgoingEvent("sources/twice/records/1", last)])
    cleaning = CleaningProcess(kafka_bootstrap, tmp_path_factory.mktemp("cleaning"))
    cleaning.start()
    try:
        wait_until(lambda: found_in(cleaning, "2"))
        assert found_in(cleaning, "1")
        count = cleaning.stub().CountRecords(cleaning_pb.CountRecordsRequest(sources=["twice"]), timeout=30)
        assert count.count == 2
    finally:
        cleaning.kill()
    assert len(sent(kafka_bootstrap, "twice")) == 2


def test_a_kill_during_a_replay_leaves_the_rest_open(
    kafka_bootstrap: str, publisher: KafkaEventPublisher, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the moment of the kill: what is marked was sent, and another replay sends the rest."""
    marks = [f"killed{number}" for number in range(40)]
    for mark in marks:
        refused_event(publisher, mark)

    def sent_of_all() -> Counter[str]:
        return Counter(headers.get("ce_id", b"").decode() for headers, _ in read_all(kafka_bootstrap, RECORDS_RAW))

    own = IngestProcess(kafka_bootstrap, tmp_path_factory.mktemp("killed"))
    own.start()
    try:
        names = [each.name for each in listed(own) if each.reason in marks]
        assert len(names) == len(marks)
        call = letters(own).ReplayDeadLetters.future(pb.ReplayDeadLettersRequest(names=names), timeout=60)
        wait_until(lambda: any(f"id-{mark}" in sent_of_all() for mark in marks))
        own.kill()
        with pytest.raises(grpc.RpcError):
            call.result()
        own.start()
        after = [each for each in listed(own) if each.reason in marks]
        before = sent_of_all()
        assert all(before[f"id-{each.reason}"] for each in after if each.state == DeadLetter.STATE_REPLAYED)
        left = [each.name for each in after if each.state == DeadLetter.STATE_OPEN]
        if left:
            assert set(replay(own, *left)) == {""}
        counts = sent_of_all()
        assert all(counts[f"id-{mark}"] in (1, 2) for mark in marks)
        assert {each.state for each in listed(own) if each.reason in marks} == {DeadLetter.STATE_REPLAYED}
    finally:
        own.kill()
