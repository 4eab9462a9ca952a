"""The running service: batches, streams, imports, foreign events, refusals, its death and its return."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from kafka import KafkaProducer
from tidemill.ingest.v1 import ingest_service_pb2 as pb
from tidemill.ingest.v1.ingest_events_pb2 import ImportCompleted, RecordIngested
from tidemill.ingest.v1.record_pb2 import Record
from tidemill.ingest.v1.source_import_pb2 import Import, JsonLinesSource, MailFolderSource, SourceSpec, TextFolderSource

from services.kit.bus.topics import DEAD_LETTERS, INBOUND, INGEST_EVENTS, RECORDS_RAW
from tests.integration.ingest.conftest import IngestProcess, messages_of
from tests.topics import read_all
from tests.waiting import wait_for, wait_until

pytestmark = pytest.mark.real

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


def create(ingest: IngestProcess, spec: SourceSpec, request_id: str = "") -> Import:
    return (
        ingest.stub().CreateImport(pb.CreateImportRequest(spec=spec, request_id=request_id), timeout=30).source_import
    )


def watch(ingest: IngestProcess, name: str) -> list[Import]:
    return [answer.source_import for answer in ingest.stub().WatchImport(pb.WatchImportRequest(name=name), timeout=60)]


def lines(path: Path, count: int, mark: str) -> SourceSpec:
    path.write_text("".join(json.dumps({"text": f"{mark} {i}", "label": str(i % 2)}) + "\n" for i in range(count)))
    return SourceSpec(source="lines", json_lines=JsonLinesSource(uri=str(path), attribute_fields=["label"]))


def pushed(bootstrap: str, source: str) -> list[tuple[dict[str, bytes], RecordIngested]]:
    found = messages_of(bootstrap, RECORDS_RAW, RecordIngested, "")
    return [(headers, message) for headers, message in found if message.record.source == source]


def letters(bootstrap: str, mark: bytes) -> list[tuple[dict[str, bytes], bytes]]:
    found = read_all(bootstrap, DEAD_LETTERS)
    return [(headers, value) for headers, value in found if mark in value or mark in headers.get("dlq_import", b"")]


def violations(error: grpc.RpcError) -> list[str]:
    call: Any = error
    found = []
    for detail in rpc_status.from_call(call).details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            found += [violation.field for violation in bad.field_violations]
    return found


def test_a_batch_is_durable_traced_and_accepted_once(ingest: IngestProcess, kafka_bootstrap: str) -> None:
    stub = ingest.stub()
    batch = [Record(source="pushed", text=f"text {i}", attributes={"n": str(i)}) for i in range(3)]
    batch.append(Record(source="pushed", text="mine", record_id="own:1"))
    batch[0].event_time.FromJsonString("2026-01-02T03:04:05Z")
    request = pb.IngestRecordsRequest(records=batch, request_id="batch-1")
    first = stub.IngestRecords(request, timeout=20, metadata=(("traceparent", TRACEPARENT),))
    assert first.record_ids[3] == "own:1"
    assert all(record_id.startswith("rec_") for record_id in first.record_ids[:3])
    assert stub.IngestRecords(request, timeout=20) == first
    found = pushed(kafka_bootstrap, "pushed")
    assert sorted(message.record.record_id for _, message in found) == sorted(first.record_ids)
    by_text = {message.record.text: message for _, message in found}
    assert by_text["text 0"].record.event_time.ToJsonString() == "2026-01-02T03:04:05Z"
    assert by_text["text 1"].record.event_time == by_text["text 1"].ingest_time
    assert all(TRACE_ID in headers["traceparent"].decode() for headers, _ in found)
    assert {headers["ce_type"] for headers, _ in found} == {b"tidemill.ingest.v1.RecordIngested"}
    request.records[0].text = "another"
    with pytest.raises(grpc.RpcError) as caught:
        stub.IngestRecords(request, timeout=20)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_record_has_the_tenant_of_its_sender(ingest: IngestProcess, kafka_bootstrap: str) -> None:
    def send(*records: Record, tenant: str = "acme") -> None:
        # As the gateway names the tenant of a key.
        metadata = (("x-tidemill-tenant", tenant),)
        ingest.stub().IngestRecords(pb.IngestRecordsRequest(records=records), timeout=20, metadata=metadata)

    send(Record(source="owned", text="mine"))
    with pytest.raises(grpc.RpcError) as caught:
        send(Record(source="owned", text="theirs", tenant="globex"))
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.RpcError, match="belongs to another tenant") as caught:
        send(Record(source="owned", text="mine"), tenant="globex")
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    answers = ingest.stub().StreamRecords(
        iter([pb.StreamRecordsRequest(records=[Record(source="owned", text="streamed")])]),
        timeout=20,
        metadata=(("x-tidemill-tenant", "acme"),),
    )
    assert len(list(answers)) == 1
    found = {message.record.text: message.record.tenant for _, message in pushed(kafka_bootstrap, "owned")}
    assert found == {"mine": "acme", "streamed": "acme"}


def test_a_bad_record_refuses_its_whole_batch(ingest: IngestProcess, kafka_bootstrap: str) -> None:
    batch = [Record(source="halves", text="good"), Record(source="halves", text="")]
    with pytest.raises(grpc.RpcError) as caught:
        ingest.stub().IngestRecords(pb.IngestRecordsRequest(records=batch), timeout=20)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert violations(caught.value) == ["records[1].text"]
    assert pushed(kafka_bootstrap, "halves") == []


def test_a_stream_acknowledges_each_batch_in_order(ingest: IngestProcess, kafka_bootstrap: str) -> None:
    def batches(count: int) -> Any:
        for number in range(count):
            records = [Record(source="streamed", text=f"batch {number} record {i}") for i in range(50)]
            yield pb.StreamRecordsRequest(request_id=f"stream-{number}", records=records)

    answers = list(ingest.stub().StreamRecords(batches(20), timeout=30))
    assert [answer.request_id for answer in answers] == [f"stream-{number}" for number in range(20)]
    again = list(ingest.stub().StreamRecords(batches(5), timeout=30))
    assert [list(answer.record_ids) for answer in again] == [list(answer.record_ids) for answer in answers[:5]]
    found = pushed(kafka_bootstrap, "streamed")
    assert sorted(message.record.record_id for _, message in found) == sorted(r for a in answers for r in a.record_ids)

    def spoilt() -> Any:
        yield from batches(2)
        yield pb.StreamRecordsRequest(records=[Record(source="streamed")])

    received = []

    def read() -> None:
        for answer in ingest.stub().StreamRecords(spoilt(), timeout=30):
            received.append(answer.request_id)

    with pytest.raises(grpc.RpcError) as caught:
        read()
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert received == ["stream-0", "stream-1"]


def test_a_folder_is_imported_and_found_again(ingest: IngestProcess, kafka_bootstrap: str, tmp_path: Path) -> None:
    for topic in ("art", "tech"):
        (tmp_path / topic).mkdir()
        for number in range(4):
            (tmp_path / topic / f"{number}.txt").write_text(f"{topic} {number}")
    (tmp_path / "tech" / "bad.txt").write_bytes(b"caf\xe9 folder-refusal")
    (tmp_path / "tech" / "empty.txt").write_bytes(b"")
    spec = SourceSpec(source="folder", text_folder=TextFolderSource(uri=tmp_path.as_uri(), folder_attribute="topic"))
    begun = create(ingest, spec, "folder-1")
    assert (begun.state, begun.reused) == (Import.STATE_RUNNING, False)
    done = watch(ingest, begun.name)[-1]
    assert done.state == Import.STATE_SUCCEEDED, done
    assert (done.record_count, done.rejected_count, done.progress.done, done.progress.total) == (8, 2, 10, 10)
    found = messages_of(kafka_bootstrap, RECORDS_RAW, RecordIngested, begun.name)
    assert {(m.record.text, m.record.attributes["topic"], m.record.attributes["path"]) for _, m in found} == {
        (f"{topic} {n}", topic, f"{topic}/{n}.txt") for topic in ("art", "tech") for n in range(4)
    }
    refused = {headers["dlq_reason"]: headers for headers, _ in letters(kafka_bootstrap, begun.name.encode())}
    assert set(refused) == {b"NOT_DECODABLE", b"EMPTY_TEXT"}
    assert refused[b"NOT_DECODABLE"]["dlq_location"].endswith(b"/tech/bad.txt")
    assert b"bad.txt" in refused[b"NOT_DECODABLE"]["dlq_message"]
    completed_events = wait_until(
        lambda: messages_of(kafka_bootstrap, INGEST_EVENTS, ImportCompleted, begun.name), "the end of the import"
    )
    assert [(m.record_count, m.digest) for _, m in completed_events] == [(8, done.digest)]

    repeat = create(ingest, spec, "folder-1")
    assert (repeat.name, repeat.reused) == (begun.name, False)
    again = create(ingest, spec)
    assert (again.name, again.reused, again.digest) == (begun.name, True, done.digest)
    (tmp_path / "art" / "0.txt").write_text("changed")
    fresh = create(ingest, spec)
    assert (fresh.name == begun.name, fresh.reused) == (False, False)
    changed = watch(ingest, fresh.name)[-1]
    assert changed.record_count == 8
    assert changed.digest != done.digest
    with pytest.raises(grpc.RpcError) as caught:
        create(ingest, SourceSpec(source="other", text_folder=spec.text_folder), "folder-1")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_mailbox_is_imported_and_a_bad_message_is_a_dead_letter(
    ingest: IngestProcess, kafka_bootstrap: str, tmp_path: Path
) -> None:
    start = b"From a@b.org Mon Aug  5 10:01:02 2002\n"
    messages = [
        b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nDate: Mon, 05 Aug 2002 10:01:02 +0200\n"
        b"Content-Transfer-Encoding: base64\nContent-Type: text/plain; charset=utf-8\n\n5L2g5aW9\n",
        b"Subject: empty\nMessage-ID: <mailbox-refusal@b.org>\n\n",
        b"Subject: last\n\nThe last one.\n",
    ]
    (tmp_path / "spam-1").mkdir()
    (tmp_path / "spam-1" / "box").write_bytes(b"\n".join(start + message for message in messages))
    mail = MailFolderSource(uri=tmp_path.as_uri(), path_pattern=r"(?P<label>ham|spam)-\d/")
    begun = create(ingest, SourceSpec(source="mail", mail_folder=mail))
    done = watch(ingest, begun.name)[-1]
    assert (done.state, done.record_count, done.rejected_count) == (Import.STATE_SUCCEEDED, 2, 1)
    found = messages_of(kafka_bootstrap, RECORDS_RAW, RecordIngested, begun.name)
    records = {m.record.attributes["subject"]: m.record for _, m in found}
    assert (records["Gr\u00fc\u00dfe"].text.strip(), records["last"].text.strip()) == ("\u4f60\u597d", "The last one.")
    assert {record.attributes["label"] for record in records.values()} == {"spam"}
    assert records["Gr\u00fc\u00dfe"].event_time.ToJsonString() == "2002-08-05T08:01:02Z"
    ((headers, content),) = letters(kafka_bootstrap, begun.name.encode())
    assert headers["dlq_location"].endswith(b"/spam-1/box:10")
    assert headers["dlq_message"].endswith(b": Message 2: The message has no text.")
    assert b"mailbox-refusal" in content


def test_lines_are_imported_once_each_up_to_a_cap(ingest: IngestProcess, kafka_bootstrap: str, tmp_path: Path) -> None:
    spec = lines(tmp_path / "a.jsonl", 30, "capped")
    path = tmp_path / "a.jsonl"
    path.write_text("no json\n" + path.read_text() + path.read_text())
    whole = watch(ingest, create(ingest, spec).name)[-1]
    assert (whole.state, whole.record_count, whole.rejected_count) == (Import.STATE_SUCCEEDED, 30, 1)
    assert len(messages_of(kafka_bootstrap, RECORDS_RAW, RecordIngested, whole.name)) == 30
    ((headers, value),) = letters(kafka_bootstrap, whole.name.encode())
    assert (headers["dlq_reason"], value) == (b"INVALID_JSON", b"no json")
    assert headers["dlq_location"].endswith(b"a.jsonl:1")
    spec.max_records = 7
    capped = watch(ingest, create(ingest, spec).name)[-1]
    found = messages_of(kafka_bootstrap, RECORDS_RAW, RecordIngested, capped.name)
    assert capped.record_count == 7
    assert sorted(m.record.text for _, m in found) == [f"capped {i}" for i in range(7)]


def test_an_import_of_nothing_but_refusals_fails(ingest: IngestProcess, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n{"text": ""}\n')
    spec = SourceSpec(source="bad", json_lines=JsonLinesSource(uri=f"{tmp_path}/*.jsonl"))
    failed = watch(ingest, create(ingest, spec).name)[-1]
    assert (failed.state, failed.failure.reason, failed.rejected_count) == (
        Import.STATE_FAILED,
        "ALL_RECORDS_REFUSED",
        2,
    )
    assert "MISSING_TEXT" in failed.failure.message
    assert failed.failure.metadata["location"].endswith("a.jsonl:1")
    (tmp_path / "a.jsonl").write_text("\n")
    assert watch(ingest, create(ingest, spec).name)[-1].failure.reason == "EMPTY_SOURCE"


def test_refusals_name_what_is_wrong(ingest: IngestProcess, tmp_path: Path) -> None:
    stub = ingest.stub()
    for uri, words in (("data/bbc", "absolute"), (f"{tmp_path}/nowhere", "does not exist"), (str(tmp_path), "matches")):
        with pytest.raises(grpc.RpcError) as caught:
            create(ingest, SourceSpec(source="s", text_folder=TextFolderSource(uri=uri)))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert violations(caught.value)[0].startswith("spec.text_folder.")
        assert words in str(caught.value)
        assert uri in str(caught.value)
    calls: list[tuple[Any, Message]] = [
        (stub.GetImport, pb.GetImportRequest(name="imports/nowhere")),
        (stub.CancelImport, pb.CancelImportRequest(name="imports/nowhere")),
    ]
    for call, request in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=10)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_running_import_can_be_cancelled_and_an_ended_one_stays(ingest: IngestProcess, tmp_path: Path) -> None:
    stub = ingest.stub()
    running = create(ingest, lines(tmp_path / "long.jsonl", 60_000, "cancelled"))
    request = pb.CancelImportRequest(name=running.name)
    for _ in range(2):
        assert stub.CancelImport(request, timeout=10).source_import.state == Import.STATE_CANCELLED
    assert watch(ingest, running.name)[-1].state == Import.STATE_CANCELLED
    done = watch(ingest, create(ingest, lines(tmp_path / "short.jsonl", 2, "short")).name)[-1]
    assert stub.CancelImport(pb.CancelImportRequest(name=done.name), timeout=10).source_import == done


def test_imports_are_listed_newest_first_by_pages(ingest: IngestProcess, tmp_path: Path) -> None:
    made = [create(ingest, lines(tmp_path / f"{i}.jsonl", 1, f"listed {i}")).name for i in range(3)]
    names, token = [], ""
    while True:
        page = ingest.stub().ListImports(pb.ListImportsRequest(page_size=2, page_token=token), timeout=10)
        names += [item.name for item in page.imports]
        token = page.next_page_token
        if not token:
            break
    assert names[:3] == made[::-1]
    assert len(set(names)) == len(names)


def test_foreign_events_become_records_and_poison_is_set_aside(ingest: IngestProcess, kafka_bootstrap: str) -> None:
    attributes = {"id": "1", "source": "/shop", "type": "com.example.ticket", "specversion": "1.0"}

    def headers(event_id: str, content_type: str) -> list[tuple[str, bytes]]:
        named = {f"ce_{name}": text for name, text in {**attributes, "id": event_id}.items()}
        named |= {"content-type": content_type, "traceparent": TRACEPARENT}
        return [(name, text.encode()) for name, text in named.items()]

    data = {"source": "foreign", "text": "structured", "label": "x"}
    structured = json.dumps({**attributes, "id": "4", "data": data}).encode()
    protobuf = Record(source="foreign", text="protobuf").SerializeToString()
    poison = b"poison-of-the-foreign-test"
    sent = [
        (b'{"source": "foreign", "text": "json"}', headers("1", "application/json")),
        (poison, []),
        (poison, headers("9", "application/json")),
        (protobuf, headers("2", "application/protobuf")),
        (b"plain", headers("3", "text/plain")),
        (structured, [("content-type", b"application/cloudevents+json")]),
        (b'{"source": "foreign", "text": "json"}', headers("1", "application/json")),
    ]
    producer = KafkaProducer(bootstrap_servers=kafka_bootstrap)
    for value, named in sent:
        producer.send(INBOUND.name, value=value, headers=named, partition=0).get(20)
    producer.close()
    found = wait_for(
        lambda: [*pushed(kafka_bootstrap, "foreign"), *pushed(kafka_bootstrap, "shop")],
        lambda records: len(records) >= 5,
        "five records",
    )
    identities: dict[str, set[str]] = {}
    for named_headers, message in found:
        identities.setdefault(message.record.text, set()).add(message.record.record_id)
        if message.record.text != "structured":
            assert TRACE_ID in dict(named_headers)["traceparent"].decode()
    assert set(identities) == {"json", "protobuf", "plain", "structured"}
    assert all(len(ids) == 1 for ids in identities.values()), "an event that comes again is the same record"
    refused = [headers for headers, _ in letters(kafka_bootstrap, poison)]
    assert sorted(item["dlq_reason"] for item in refused) == [b"INVALID_JSON", b"NOT_A_CLOUDEVENT"]
    assert {item["dlq_topic"] for item in refused} == {INBOUND.name.encode()}


def test_killed_in_the_middle_an_import_ends_as_if_it_had_not_been(
    ingest: IngestProcess, kafka_bootstrap: str, tmp_path: Path
) -> None:
    count = 15_000
    spec = lines(tmp_path / "killed.jsonl", count, "killed")
    begun = create(ingest, spec, "killed-1")
    deaths = 0
    for share in (0.1, 0.4):
        for answer in ingest.stub().WatchImport(pb.WatchImportRequest(name=begun.name), timeout=60):
            if answer.source_import.record_count > share * count:
                break
        state = ingest.stub().GetImport(pb.GetImportRequest(name=begun.name), timeout=10).source_import.state
        deaths += state == Import.STATE_RUNNING
        ingest.kill()
        ingest.start()
    assert deaths >= 1, "it was quicker than the killer; give it more to do"
    assert create(ingest, spec, "killed-1").name == begun.name
    done = watch(ingest, begun.name)[-1]
    assert (done.state, done.record_count) == (Import.STATE_SUCCEEDED, count)
    found = messages_of(kafka_bootstrap, RECORDS_RAW, RecordIngested, begun.name)
    assert {m.record.text for _, m in found} == {f"killed {i}" for i in range(count)}
    assert len({headers["ce_id"] for headers, _ in found}) == count, "a repeat after a kill is the same event"

    spec.source = "lines"
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((tmp_path / "killed.jsonl").read_bytes())
    spec.json_lines.uri = str(copy)
    undisturbed = watch(ingest, create(ingest, spec).name)[-1]
    assert (undisturbed.record_count, undisturbed.digest) == (done.record_count, done.digest)


def test_while_the_bus_is_unavailable_nothing_is_accepted_and_whoever_reads_is_answered(
    ingest: IngestProcess, frozen_kafka: None
) -> None:
    stub = ingest.stub()
    batch = pb.IngestRecordsRequest(records=[Record(source="away", text="text")])
    calls = [stub.IngestRecords.future(batch, timeout=20) for _ in range(40)]
    stub.ListImports(pb.ListImportsRequest(), timeout=20)
    assert not any(call.done() for call in calls), "it was held up by those that wait for the bus"
    # Before their deadline is over, so that they learn which part is unavailable.
    assert {call.code() for call in calls} == {grpc.StatusCode.UNAVAILABLE}
    assert "Kafka" in calls[0].details()


def test_while_the_bus_is_unavailable_memory_is_bounded_and_callers_get_a_time_to_retry(
    ingest: IngestProcess, frozen_kafka: None
) -> None:
    stub = ingest.stub()
    text = "x" * 500_000
    batch = pb.IngestRecordsRequest(records=[Record(source="away", text=f"{text}{i}") for i in range(7)])
    # 210 MB of records, of which 128 MiB may wait.
    calls = [stub.IngestRecords.future(batch, timeout=20) for _ in range(60)]
    refused = [call for call in calls if call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert refused
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in rpc_status.from_call(refused[0]).details)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1
    assert {call.code() for call in calls} <= {
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
    }
    stub.ListImports(pb.ListImportsRequest(), timeout=10)


def test_a_repeat_after_a_restart_answers_as_before_and_it_ends_in_order(ingest: IngestProcess) -> None:
    request = pb.IngestRecordsRequest(records=[Record(source="again", text="text")], request_id="again-1")
    first = ingest.stub().IngestRecords(request, timeout=20)
    assert ingest.stop() == 0
    ingest.start()
    assert ingest.stub().IngestRecords(request, timeout=20) == first
