"""The running service: records from the bus to snapshots, its RPCs, its refusals, its death and its return."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pyarrow.parquet as pq
import pytest
from google.protobuf import struct_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from tidemill.cleaning.v1 import cleaning_events_pb2, dataset_pb2
from tidemill.cleaning.v1 import cleaning_service_pb2 as pb

from infra.stack.testing import brokers
from services.kit.bus.kafka import KafkaEventPublisher
from services.kit.bus.port import OutgoingEvent
from services.kit.bus.topics import CLEANING_EVENTS, DEAD_LETTERS, RECORDS_CLEAN, RECORDS_RAW, RECORDS_REJECTED
from tests.integration.cleaning.bus import events_of, raw_event
from tests.integration.cleaning.conftest import CleaningProcess
from tests.topics import read_all
from tests.waiting import wait_for

pytestmark = pytest.mark.real

Version = dataset_pb2.DatasetVersion


@pytest.fixture(scope="module")
def publisher(kafka_bootstrap: str) -> Any:
    made = KafkaEventPublisher(brokers(kafka_bootstrap), "ingest")
    yield made
    made.close()


def operator(name: str, **params: Any) -> dataset_pb2.OperatorSpec:
    struct = struct_pb2.Struct()
    struct.update(params)
    return dataset_pb2.OperatorSpec(name=name, params=struct)


def put(cleaning: CleaningProcess, name: str, *operators: dataset_pb2.OperatorSpec, **spec: Any) -> dataset_pb2.Dataset:
    sources = spec.pop("sources", [name])
    message = dataset_pb2.DatasetSpec(sources=sources, operators=operators, **spec)
    request = pb.PutDatasetRequest(name=f"datasets/{name}", spec=message)
    return cleaning.stub().PutDataset(request, timeout=20).dataset


def build(cleaning: CleaningProcess, name: str, imports: dict[str, int], request_id: str = "") -> Version:
    request = pb.BuildDatasetVersionRequest(
        dataset=f"datasets/{name}",
        request_id=request_id,
        awaited_imports=[pb.AwaitedImport(name=key, record_count=count) for key, count in imports.items()],
    )
    return cleaning.stub().BuildDatasetVersion(request, timeout=20).dataset_version


def watch(cleaning: CleaningProcess, version: Version) -> list[Version]:
    stream = cleaning.stub().WatchDatasetVersion(pb.WatchDatasetVersionRequest(name=version.name), timeout=90)
    return [answer.dataset_version for answer in stream]


def arrived(cleaning: CleaningProcess, version: Version) -> int | None:
    """Awaited records that are here; None when the version is built."""
    request = pb.GetDatasetVersionRequest(name=version.name)
    now = cleaning.stub().GetDatasetVersion(request, timeout=10).dataset_version
    return now.progress.done if now.state == Version.STATE_BUILDING and now.progress.phase == "await" else None


def violations(caught: pytest.ExceptionInfo[grpc.RpcError]) -> list[str]:
    call: Any = caught.value
    status = rpc_status.from_call(call)
    found = []
    for detail in status.details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            found += [violation.field for violation in bad.field_violations]
    return found


@dataclass(frozen=True)
class Built:
    """A data-set version that the service built from 103 records, one of them published within a trace."""

    version: Version
    """When it was ordered."""
    ready: Version
    """When it was built."""
    trace_id: str


@pytest.fixture(scope="module")
def news(cleaning: CleaningProcess, publisher: KafkaEventPublisher) -> Built:
    put(
        cleaning,
        "news",
        operator("fix_unicode"),
        operator("first_line_to_field", field="headline"),
        operator("length_filter", min_chars=20),
        operator("exact_dedup"),
        holdout=dataset_pb2.HoldoutSpec(fraction=0.2, max_records=10),
        required_attributes=["headline"],
    )
    version = build(cleaning, "news", {"imports/one": 103}, request_id="build-1")
    events = [
        raw_event(f"n{i}", "news", f"Head {i}\nBody of the article {i} itâ€™s long", "imports/one") for i in range(100)
    ]
    events.append(raw_event("short", "news", "Head\nshort", "imports/one"))
    events.append(raw_event("twin", "news", "Other head\nbody  of the ARTICLE 7 it's long", "imports/one"))
    tracer = TracerProvider().get_tracer("test")
    # Some records arrive twice.
    publisher.publish(RECORDS_RAW, [*events, *events[:30]])
    with tracer.start_as_current_span("import") as span:
        publisher.publish(RECORDS_RAW, [raw_event("traced", "news", "Head\nA body that has a trace.", "imports/one")])
        trace_id = trace.format_trace_id(span.get_span_context().trace_id)
    return Built(version, watch(cleaning, version)[-1], trace_id)


def test_a_version_waits_for_its_imports_and_counts_every_record_once(news: Built) -> None:
    ready = news.ready
    assert news.version.state == Version.STATE_BUILDING
    assert ready.state == Version.STATE_READY, ready
    assert ready.records_in == 103
    rejected = dict(ready.rejected_by_reason)
    assert rejected.pop("holdout_surplus", 0) + ready.train_count + ready.holdout_count == 101
    assert rejected == {"too_short": 1, "exact_duplicate": 1}
    assert 0 < ready.holdout_count <= 10


def test_the_files_of_a_version_have_the_cleaned_records_and_its_digest(news: Built) -> None:
    folder = Path(news.ready.uri.removeprefix("file://"))
    rows = pq.read_table(folder / "train.parquet").to_pylist()
    assert len(rows) == news.ready.train_count
    assert all(
        "it's" in row["text"] and row["headline"].startswith("Head") for row in rows if row["record_id"] != "traced"
    )
    assert json.loads((folder / "manifest.json").read_text())["digest"] == news.ready.digest


def test_a_repeated_request_is_the_same_build(cleaning: CleaningProcess, news: Built) -> None:
    repeat = build(cleaning, "news", {"imports/one": 103}, request_id="build-1")
    assert repeat.name == news.version.name


def test_a_build_of_equal_records_is_reused(cleaning: CleaningProcess, news: Built) -> None:
    again = build(cleaning, "news", {"imports/one": 103}, request_id="build-2")
    assert again.reused
    assert (again.name, again.digest, again.uri) == (news.ready.name, news.ready.digest, news.ready.uri)


def test_clean_records_are_published_with_their_attributes_and_trace(news: Built, kafka_bootstrap: str) -> None:
    clean = events_of(kafka_bootstrap, RECORDS_CLEAN, cleaning_events_pb2.RecordCleaned, source="news")
    assert len({message.record_id for _, message in clean}) == 102
    (traced,) = [(headers, message) for headers, message in clean if message.record_id == "traced"]
    assert news.trace_id in traced[0]["traceparent"].decode()
    assert traced[0]["ce_type"] == b"tidemill.cleaning.v1.RecordCleaned"
    assert traced[1].attributes["headline"] == "Head"


@pytest.mark.usefixtures("news")
def test_rejected_records_are_published_with_the_reason(kafka_bootstrap: str) -> None:
    refused = events_of(kafka_bootstrap, RECORDS_REJECTED, cleaning_events_pb2.RecordRejected, source="news")
    assert {(m.record_id, m.reason, m.detail) for _, m in refused} == {("short", "too_short", "chars=5 < min_chars=20")}


def test_a_built_version_is_published_once(news: Built, kafka_bootstrap: str) -> None:
    ready = news.ready
    built = events_of(
        kafka_bootstrap, CLEANING_EVENTS, cleaning_events_pb2.DatasetVersionBuilt, dataset_version=ready.name
    )
    assert [(m.digest, m.uri, m.train_count) for _, m in built] == [(ready.digest, ready.uri, ready.train_count)]


def test_a_poison_message_is_set_aside_and_stalls_nothing(
    cleaning: CleaningProcess, publisher: KafkaEventPublisher, kafka_bootstrap: str
) -> None:
    put(cleaning, "poison", operator("normalize_whitespace"))
    nameless = raw_event("x", "poison", "A record without identity")
    nameless.message.record.record_id = ""  # type: ignore[attr-defined]  # of RecordIngested
    wrong_kind = OutgoingEvent("p", cleaning_events_pb2.RecordRejected(record_id="poison-kind"))
    publisher.publish(RECORDS_RAW, [nameless, wrong_kind, raw_event("fine", "poison", " a  fine text ", "imports/p")])
    ready = watch(cleaning, build(cleaning, "poison", {"imports/p": 1}))[-1]
    assert (ready.state, ready.train_count) == (Version.STATE_READY, 1)
    letters = read_all(kafka_bootstrap, DEAD_LETTERS)
    assert {headers["dlq_reason"] for headers, value in letters if b"poison" in value} == {
        b"MISSING_RECORD_ID",
        b"UNEXPECTED_EVENT_TYPE",
    }
    answer = cleaning.stub().GetRecord(pb.GetRecordRequest(record_id="fine"), timeout=10)
    assert answer.import_name == "imports/p"
    assert [(v.dataset, v.text) for v in answer.verdicts] == [("datasets/poison", "a fine text")]
    explained = cleaning.stub().ExplainRecord(pb.ExplainRecordRequest(record_id="fine", source="poison"), timeout=10)
    (only,) = explained.datasets
    assert (explained.name, only.dataset_version) == ("sources/poison/records/fine", ready.name)
    assert only.placement == pb.DatasetExplanation.PLACEMENT_TRAIN
    assert [effect.operator for effect in only.effects] == ["normalize_whitespace"]


def test_a_changed_recipe_cleans_again_what_was_collected(
    cleaning: CleaningProcess, publisher: KafkaEventPublisher
) -> None:
    publisher.publish(RECORDS_RAW, [raw_event(f"c{i}", "changing", f"<b>text</b> {i}", "imports/c") for i in range(20)])
    first = put(cleaning, "changing", operator("strip_html"))
    one = watch(cleaning, build(cleaning, "changing", {"imports/c": 20}))[-1]
    second = put(cleaning, "changing", operator("strip_html"), operator("length_filter", min_chars=7))
    assert first.recipe_digest != second.recipe_digest
    assert first.create_time == second.create_time
    two = watch(cleaning, build(cleaning, "changing", {}))[-1]
    assert (one.train_count, two.train_count) == (20, 10)
    assert dict(two.rejected_by_reason) == {"too_short": 10}
    back = put(cleaning, "changing", operator("strip_html"))
    assert back.recipe_digest == first.recipe_digest
    assert watch(cleaning, build(cleaning, "changing", {}))[-1].digest == one.digest
    listed = cleaning.stub().ListDatasetVersions(
        pb.ListDatasetVersionsRequest(dataset="datasets/changing", page_size=1), timeout=10
    )
    assert [v.name.rpartition("/")[2] for v in listed.dataset_versions] == ["2"]
    rest = cleaning.stub().ListDatasetVersions(
        pb.ListDatasetVersionsRequest(dataset="datasets/changing", page_token=listed.next_page_token), timeout=10
    )
    assert [v.name.rpartition("/")[2] for v in rest.dataset_versions] == ["1"]


def test_pseudonyms_are_the_same_in_every_request(cleaning: CleaningProcess) -> None:
    recipe = [operator("mask_pii", pseudonyms=True)]

    def masked(text: str) -> str:
        return str(cleaning.stub().CleanText(pb.CleanTextRequest(text=text, operators=recipe), timeout=10).text)

    token = masked("anna@example.com")
    assert token.startswith("[EMAIL-")
    assert masked("Anna@example.com, not hanna@example.com").startswith(f"{token}, not [EMAIL-")
    assert masked("hanna@example.com") != token


def test_a_text_is_cleaned_online(cleaning: CleaningProcess) -> None:
    put(cleaning, "online", operator("mask_pii"), operator("length_filter", min_chars=10))
    stub = cleaning.stub()
    given = stub.CleanText(pb.CleanTextRequest(text="write to a@b.org please", dataset="datasets/online"), timeout=10)
    assert given.text == "write to [EMAIL] please"
    refused = stub.CleanText(pb.CleanTextRequest(text="tiny", dataset="datasets/online"), timeout=10)
    assert (refused.text, refused.rejected_reason, refused.rejected_operator) == ("", "too_short", "length_filter")
    assert not refused.effects
    explained = stub.CleanText(
        pb.CleanTextRequest(text="a@b.org", attributes={"cc": "c@d.org"}, dataset="datasets/online", explain=True),
        timeout=10,
    )
    masked, dropped = explained.effects
    assert [(c.field, [(e.start, e.end, e.before, e.after) for e in c.edits]) for c in masked.changes] == [
        ("text", [(0, 7, "a@b.org", "[EMAIL]")]),
        ("cc", [(0, 7, "c@d.org", "[EMAIL]")]),
    ]
    assert (dropped.operator, dropped.rejected_reason, dropped.rejected_detail) == (
        "length_filter",
        "too_short",
        "chars=7 < min_chars=10",
    )
    ad_hoc = stub.CleanText(pb.CleanTextRequest(text="<p>x</p>", operators=[operator("strip_html")]), timeout=10)
    assert ad_hoc.text == "x"
    groups = {"groups": [["nice", "lovely"]]}
    augment = dataset_pb2.AugmentSpec(operators=[operator("synonym_replacement", **groups)])
    tried = stub.CleanText(pb.CleanTextRequest(text="nice room", augment=augment), timeout=10)
    assert [(each.augmenter, each.text) for each in tried.variants] == [("synonym_replacement", "lovely room")]
    augment.operators[0].params.update({"tables": ["cilin"]})
    with pytest.raises(grpc.RpcError) as caught:
        stub.CleanText(pb.CleanTextRequest(text="nice room", augment=augment), timeout=10)
    assert violations(caught) == ["augment.operators[0].params.tables[0]"]


def test_an_augmented_version_counts_and_explains_its_variants(
    cleaning: CleaningProcess, publisher: KafkaEventPublisher
) -> None:
    augment = dataset_pb2.AugmentSpec(operators=[operator("random_swap")], seed=3, per_record=2)
    put(cleaning, "augmented", holdout=dataset_pb2.HoldoutSpec(fraction=0.2), augment=augment)
    version = build(cleaning, "augmented", {"imports/augmented": 40})
    texts = [f"big red house number {i} was built by three friends" for i in range(40)]
    publisher.publish(
        RECORDS_RAW, [raw_event(f"a{i}", "augmented", text, "imports/augmented") for i, text in enumerate(texts)]
    )
    ready = watch(cleaning, version)[-1]
    assert ready.state == Version.STATE_READY
    variants = ready.variant_counts["random_swap"]
    originals = ready.train_count - variants
    assert originals + ready.holdout_count == 40
    assert variants + sum(ready.dropped_variant_counts.values()) == 2 * originals
    assert variants > originals
    folder = Path(ready.uri.removeprefix("file://"))
    assert not any(pq.read_table(folder / "holdout.parquet")["variant_of"].to_pylist())
    row = next(row for row in pq.read_table(folder / "train.parquet").to_pylist() if row["variant_of"])
    request = pb.ExplainRecordRequest(record_id=row["record_id"], source="augmented")
    found = cleaning.stub().ExplainRecord(request, timeout=10)
    assert (found.record_id, found.variant_id) == (row["variant_of"], row["record_id"])
    (made,) = found.datasets[0].variants
    assert (made.record_id, made.augmenter, made.text) == (row["record_id"], row["variant_by"], row["text"])
    again = build(cleaning, "augmented", {"imports/augmented": 40})
    assert (again.name, again.reused) == (ready.name, True)


def test_refusals_name_what_is_wrong(cleaning: CleaningProcess) -> None:
    stub = cleaning.stub()
    with pytest.raises(grpc.RpcError) as caught:
        put(cleaning, "wrong", operator("fix_unicode"), operator("lenght_filter", min_chars=3))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert violations(caught) == ["operators[1].name"]
    assert "length_filter" in str(caught.value)
    with pytest.raises(grpc.RpcError) as caught:
        stub.PutDataset(pb.PutDatasetRequest(name="datasets/UPPER", spec=dataset_pb2.DatasetSpec()), timeout=10)
    assert set(violations(caught)) == {"name", "spec.sources"}
    with pytest.raises(grpc.RpcError) as caught:
        stub.CleanText(pb.CleanTextRequest(text="x"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    calls: list[tuple[Any, Message]] = [
        (stub.GetDataset, pb.GetDatasetRequest(name="datasets/nowhere")),
        (stub.GetDatasetVersion, pb.GetDatasetVersionRequest(name="datasets/nowhere/versions/1")),
        (stub.BuildDatasetVersion, pb.BuildDatasetVersionRequest(dataset="datasets/nowhere")),
        (stub.ListDatasetVersions, pb.ListDatasetVersionsRequest(dataset="datasets/nowhere")),
        (stub.GetRecord, pb.GetRecordRequest(record_id="nobody")),
        (stub.CleanText, pb.CleanTextRequest(text="x", dataset="datasets/nowhere")),
    ]
    for call, request in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=10)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_waiting_build_can_be_cancelled_and_a_finished_one_stays_as_it_is(cleaning: CleaningProcess) -> None:
    put(cleaning, "cancelled", operator("normalize_whitespace"))
    version = build(cleaning, "cancelled", {"imports/never": 5})
    stub = cleaning.stub()
    request = pb.CancelDatasetVersionRequest(name=version.name)
    for _ in range(2):
        assert stub.CancelDatasetVersion(request, timeout=10).dataset_version.state == Version.STATE_CANCELLED
    assert watch(cleaning, version)[-1].state == Version.STATE_CANCELLED
    done = watch(cleaning, build(cleaning, "cancelled", {}))[-1]
    answer = stub.CancelDatasetVersion(pb.CancelDatasetVersionRequest(name=done.name), timeout=10)
    assert answer.dataset_version == done


def test_data_sets_are_listed_by_pages(cleaning: CleaningProcess) -> None:
    for number in range(3):
        put(cleaning, f"zz-{number}", operator("normalize_whitespace"))
    names, token = [], ""
    while True:
        page = cleaning.stub().ListDatasets(pb.ListDatasetsRequest(page_size=2, page_token=token), timeout=10)
        names += [dataset.name for dataset in page.datasets]
        token = page.next_page_token
        if not token:
            break
    assert names == sorted(set(names))
    assert names[-3:] == ["datasets/zz-0", "datasets/zz-1", "datasets/zz-2"]


def test_killed_at_any_moment_it_loses_nothing_and_does_nothing_twice(
    cleaning: CleaningProcess, publisher: KafkaEventPublisher, kafka_bootstrap: str
) -> None:
    count = 10_000
    put(
        cleaning,
        "killed",
        operator("normalize_whitespace"),
        operator("length_filter", min_chars=12),
        operator("exact_dedup"),
        holdout=dataset_pb2.HoldoutSpec(fraction=0.1),
    )
    version = build(cleaning, "killed", {"imports/k": count}, request_id="killed-1")
    # One of ten is too short, one of ten repeats its neighbour.
    texts = ["short" if i % 10 == 0 else f"text number {i - (i % 10 == 2)} of the import" for i in range(count)]
    for start in range(0, count, 2000):
        part = range(start, start + 2000)
        publisher.publish(RECORDS_RAW, [raw_event(f"k{i}", "killed", texts[i], "imports/k") for i in part])
    rng = random.Random(11)
    deaths = 0
    for mark in (0, count // 8, count // 4, count // 2):
        wait_for(lambda: arrived(cleaning, version), lambda done, mark=mark: done is None or done > mark)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.1))
        deaths += arrived(cleaning, version) is not None
        cleaning.kill()
        cleaning.start()
    assert deaths >= 2, "it was quicker than the killer; give it more to do"
    ready = watch(cleaning, version)[-1]
    assert ready.state == Version.STATE_READY, ready
    assert ready.records_in == count
    assert dict(ready.rejected_by_reason) == {"too_short": count // 10, "exact_duplicate": count // 10}
    assert ready.train_count + ready.holdout_count == count * 8 // 10

    seen: dict[str, set[bytes]] = {}
    clean = events_of(kafka_bootstrap, RECORDS_CLEAN, cleaning_events_pb2.RecordCleaned, source="killed")
    refused = events_of(kafka_bootstrap, RECORDS_REJECTED, cleaning_events_pb2.RecordRejected, source="killed")
    published = [(h, m.record_id) for h, m in clean] + [(h, m.record_id) for h, m in refused]
    for headers, record_id in published:
        seen.setdefault(record_id, set()).add(headers["ce_id"])
    assert len(seen) == count
    assert all(len(ids) == 1 for ids in seen.values()), "a repeat after a kill is the same event"
    built = events_of(
        kafka_bootstrap, CLEANING_EVENTS, cleaning_events_pb2.DatasetVersionBuilt, dataset_version=ready.name
    )
    assert len({headers["ce_id"] for headers, _ in built}) == 1


def test_asked_to_stop_it_ends_in_order(cleaning: CleaningProcess) -> None:
    assert cleaning.stop() == 0
    cleaning.start()
