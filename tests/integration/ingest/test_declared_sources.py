"""Declared sources on the running service: collected by their times, across a kill between the order and the import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tidemill.ingest.v1 import ingest_service_pb2 as ingest_pb
from tidemill.ingest.v1 import source_service_pb2 as pb
from tidemill.ingest.v1 import source_service_pb2_grpc as stubs
from tidemill.ingest.v1.ingest_events_pb2 import RecordIngested
from tidemill.ingest.v1.record_pb2 import Record
from tidemill.ingest.v1.source_import_pb2 import CollectionSchedule, Import, JsonLinesSource, SourceSpec
from tidemill.ingest.v1.source_pb2 import Source

from services.kit.bus.topics import RECORDS_RAW, TOPICS
from tests.integration.ingest.conftest import IngestProcess, messages_of
from tests.site import Site
from tests.topics import read_all
from tests.waiting import wait_for

pytestmark = pytest.mark.real


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def sources(ingest: IngestProcess) -> stubs.SourceServiceStub:
    return stubs.SourceServiceStub(ingest.channel())


def spec(source: str, uri: str, every_minutes: float) -> SourceSpec:
    file = JsonLinesSource(uri=uri, id_field="id")
    return SourceSpec(source=source, json_lines=file, collect=CollectionSchedule(every_minutes=every_minutes))


def lines(texts: dict[str, str]) -> str:
    return "".join(json.dumps({"id": record_id, "text": text}) + "\n" for record_id, text in texts.items())


def read(ingest: IngestProcess, name: str) -> Source:
    return sources(ingest).GetSource(pb.GetSourceRequest(name=name), timeout=30).source


def imports_of(ingest: IngestProcess, source: str) -> list[str]:
    listed = ingest.stub().ListImports(ingest_pb.ListImportsRequest(page_size=1000), timeout=30).imports
    return [item.name for item in listed if item.spec.source == source]


def cli(ingest: IngestProcess, folder: Path, *words: str) -> tuple[int, str]:
    """Runs `tidemill sources`; returns its exit code and what it printed."""
    command = [sys.executable, "-m", "gateway.cli.main", "sources", *words, "--address", f"127.0.0.1:{ingest.port}"]
    environment = {**os.environ, "TIDEMILL_STATE": str(folder / "state")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_kill_between_order_and_import_neither_loses_nor_doubles_the_collection(
    ingest: IngestProcess, kafka_bootstrap: str, site: Site
) -> None:
    site.put("/news.jsonl", lines({"1": "one", "2": "two"}).encode())
    reached, killed = threading.Event(), threading.Event()

    def hold(path: str) -> None:
        # The check of the source, which comes after the order and before the import.
        if not killed.is_set():
            reached.set()
            killed.wait(60)

    site.before = hold
    request = pb.PutSourceRequest(spec=spec("killed-news", site.url("/news.jsonl"), 525_600))
    sources(ingest).PutSource(request, timeout=30)
    assert reached.wait(60)
    (ordered,) = read(ingest, "sources/killed-news").collections
    assert (ordered.actor, ordered.import_name) == ("schedule", "")
    assert imports_of(ingest, "killed-news") == []
    ingest.kill()
    killed.set()
    ingest.start()
    done = wait_for(
        lambda: read(ingest, "sources/killed-news"),
        lambda source: source.last_import.state == Import.STATE_SUCCEEDED,
        "the collection that was ordered before the kill",
    )
    assert [(item.order_time, item.import_name) for item in done.collections] == [
        (ordered.order_time, done.last_import.name)
    ]
    assert imports_of(ingest, "killed-news") == [done.last_import.name]
    found = messages_of(kafka_bootstrap, RECORDS_RAW, RecordIngested, done.last_import.name)
    assert sorted(message.record.text for _, message in found) == ["one", "two"]


def test_a_file_that_changes_is_collected_until_it_is_paused_and_deleted(ingest: IngestProcess, tmp_path: Path) -> None:
    file, name = tmp_path / "shop.jsonl", "sources/changing-shop"
    file.write_text(lines({"1": "one", "2": "two"}))
    wanted = spec("changing-shop", str(file), 0.1)
    sources(ingest).PutSource(pb.PutSourceRequest(spec=wanted), timeout=30)
    first = wait_for(
        lambda: read(ingest, name).last_import,
        lambda last: last.state == Import.STATE_SUCCEEDED,
        "the first collection",
    )
    assert (first.record_count, first.added_count) == (2, 2)
    file.write_text(lines({"2": "edited", "3": "three"}))
    second = wait_for(
        lambda: read(ingest, name).last_import,
        lambda last: last.name != first.name and last.state == Import.STATE_SUCCEEDED,
        "a collection of the changed file",
    )
    assert (second.added_count, second.changed_count, second.withdrawn_count) == (1, 1, 1)
    sources(ingest).PauseSource(pb.PauseSourceRequest(name=name, reason="a test"), timeout=30)
    file.write_text(lines({"4": "four"}))
    with pytest.raises(grpc.RpcError) as refused:
        sources(ingest).CollectSource(pb.CollectSourceRequest(name=name), timeout=30)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    # A cycle's import gets what was collected before, and begins none.
    once = SourceSpec(source="changing-shop", json_lines=wanted.json_lines)
    given = ingest.stub().CreateImport(ingest_pb.CreateImportRequest(spec=once), timeout=30).source_import
    assert (given.name, given.reused) == (second.name, True)
    sources(ingest).ResumeSource(pb.ResumeSourceRequest(name=name), timeout=30)
    third = sources(ingest).CollectSource(pb.CollectSourceRequest(name=name), timeout=30).source_import
    *_, last = ingest.stub().WatchImport(ingest_pb.WatchImportRequest(name=third.name), timeout=60)
    assert (last.source_import.added_count, last.source_import.withdrawn_count) == (1, 2)
    sources(ingest).DeleteSource(pb.DeleteSourceRequest(name=name), timeout=30)
    with pytest.raises(grpc.RpcError) as gone:
        read(ingest, name)
    assert gone.value.code() is grpc.StatusCode.NOT_FOUND


def test_the_command_line_declares_collects_pauses_and_deletes(ingest: IngestProcess, tmp_path: Path) -> None:
    (tmp_path / "tickets.jsonl").write_text(lines({"1": "one", "2": "two"}))
    file = tmp_path / "sources.yaml"
    text = "sources:\n- source: cli-tickets\n  json_lines: {uri: tickets.jsonl, id_field: id}\n"
    text += "  collect: {schedule: 0 %s * * *}\n"
    file.write_text(text % 25)
    code, shown = cli(ingest, tmp_path, "put", str(file))
    assert (code, f"{file}:4:13: sources[0].collect.schedule" in shown) == (2, True), shown
    file.write_text(text % 3)
    assert cli(ingest, tmp_path, "put", str(file))[0] == 0
    assert cli(ingest, tmp_path, "collect", "cli-tickets") == (0, "cli-tickets: 2 records\n")
    code, shown = cli(ingest, tmp_path, "pause", "cli-tickets", "--reason", "a test")
    assert (code, "paused: a test" in shown) == (0, True), shown
    code, shown = cli(ingest, tmp_path, "collect", "cli-tickets")
    assert (code, "sources/cli-tickets is paused: a test." in shown) == (1, True), shown
    code, shown = cli(ingest, tmp_path, "list")
    assert (code, "0 3 * * * (UTC)" in shown, "succeeded: 2 records" in shown) == (0, True, True), shown
    assert cli(ingest, tmp_path, "delete", "cli-tickets") == (0, "sources/cli-tickets is deleted; its records stay.\n")
    code, shown = cli(ingest, tmp_path, "show", "cli-tickets")
    assert (code, "`tidemill sources list` shows those that are declared." in shown) == (1, True), shown


def test_what_a_policy_masks_is_nowhere_in_the_mesh(
    ingest: IngestProcess, kafka_bootstrap: str, tmp_path: Path
) -> None:
    mail, phone = "planted.token@example.com", "13800138000"
    (tmp_path / "edge.jsonl").write_text(
        lines({mail: f"write to {mail}"}) + json.dumps({"id": "2", "mail": mail}) + "\n"
    )
    file = tmp_path / "sources.yaml"
    policy = "{licence: CC-BY-4.0, data_class: private, mask: edge}"
    file.write_text(
        f"sources:\n- source: edge-pushed\n  pushed: {{}}\n  policy: {policy}\n"
        f"- source: edge-pulled\n  json_lines: {{uri: edge.jsonl, id_field: id}}\n  policy: {policy}\n"
    )
    code, shown = cli(ingest, tmp_path, "put", str(file))
    assert (code, "others push it" in shown) == (0, True), shown
    assert cli(ingest, tmp_path, "collect", "edge-pulled")[0] == 0
    code, shown = cli(ingest, tmp_path, "show", "edge-pushed")
    assert (code, "licence CC-BY-4.0, data_class private, mask edge" in shown) == (0, True), shown
    code, shown = cli(ingest, tmp_path, "collect", "edge-pushed")
    assert (code, "Others push the records of sources/edge-pushed" in shown) == (1, True), shown
    ingest.kill()
    ingest.start()
    record = Record(source="edge-pushed", text=f"I am {mail}", record_id=phone, attributes={"from": mail})
    for request in ("edge-1", "edge-1", "edge-2"):
        record.attributes["request"] = request
        batch = ingest_pb.IngestRecordsRequest(request_id=request, records=[record])
        ingest.stub().IngestRecords(batch, timeout=30)
    pulled = imports_of(ingest, "edge-pulled")
    assert len(pulled) == 1
    found = [
        message.record
        for name in ("", *pulled)
        for _, message in messages_of(kafka_bootstrap, RECORDS_RAW, RecordIngested, name)
        if message.record.source.startswith("edge-")
    ]
    assert {record.text for record in found} == {"I am [EMAIL]", "write to [EMAIL]"}
    assert {record.attributes["data_class"] for record in found} == {"private"}
    assert len({record.record_id for record in found}) == 2
    for token in (b"planted.token", phone.encode()):
        for topic in TOPICS:
            for headers, value in read_all(kafka_bootstrap, topic):
                assert token not in value, topic
                assert not any(token in header for header in headers.values()), topic
        kept = [path for path in ingest.folder.rglob("*") if path.is_file()]
        assert any(path.suffix == ".sqlite" for path in kept)
        assert [path for path in kept if token in path.read_bytes()] == []
