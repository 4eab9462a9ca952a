"""One recipe, one corpus: the same verdicts online, from the bus, in a built version, and in bulk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from google.protobuf import json_format
from tidemill.cleaning.v1 import cleaning_events_pb2, dataset_pb2
from tidemill.cleaning.v1 import cleaning_service_pb2 as pb

from infra.stack.layout import python_path
from infra.stack.testing import brokers
from services.kit.bus.kafka import KafkaEventPublisher
from services.kit.bus.topics import RECORDS_CLEAN, RECORDS_RAW, RECORDS_REJECTED
from tests.integration.cleaning.bus import events_of, raw_event
from tests.integration.cleaning.conftest import CleaningProcess
from tests.integration.cleaning.test_bbc import articles

pytestmark = pytest.mark.real

SOURCE = "corpus"
OPERATORS: list[Any] = [
    "fix_unicode",
    "strip_html",
    "normalize_whitespace",
    {"first_line_to_field": {"field": "headline"}},
    {"mask_pii": {"pseudonyms": True}},
    {"length_filter": {"min_chars": 400}},
    {"repetition_filter": {}},
    {"detect_language": {"field": "language"}},
    {"conflicting_labels": {"field": "topic"}},
    "exact_dedup",
    {"near_dedup": {"threshold": 0.7}},
]
HARD = 10
ARTICLES = 300
SET_OPERATORS = ("conflicting_labels", "exact_dedup", "near_dedup")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a record."""

    text: str
    attributes: Mapping[str, str]
    reason: str = ""
    detail: str = ""
    operator: str = ""


Verdicts = dict[str, Verdict]


def hard() -> list[tuple[str, Mapping[str, str]]]:
    """Records for the operators that articles do not trouble."""
    bodies = [record.text for record in articles()[1::7]]
    mail = "Write to jane.doe@example.com or +1 630-555-0187."
    return [
        (f"Mail\n{mail} {bodies[0]}", {"topic": "x"}),
        (f"Mail again\nJane is jane.doe@example.com. {bodies[1]}", {"topic": "x"}),
        (
            "邮件\n患者的电话是13800138000，邮箱zhang.san@example.cn。" + "这段文字关于北京的天气。" * 40,
            {"topic": "zh"},
        ),
        (f"Broken\nIt’s “quoted” and <b>bold</b> &amp; itâ€™s long. \x00 {bodies[2]}", {"topic": "x"}),
        (f"No topic\n{bodies[3]}", {}),
        (f"Label\nTwo people disagree about this. {bodies[4]}", {"topic": "one"}),
        (f"Label\nTwo people disagree about this. {bodies[4]}", {"topic": "two"}),
        ("Again and again\n" + "spam " * 400, {"topic": "x", "n": "7"}),
        ("Head\nshort", {"topic": "x"}),
        (bodies[5].upper(), {"topic": "x"}),
    ]


@pytest.fixture(scope="module")
def corpus() -> list[tuple[str, str, Mapping[str, str]]]:
    """(id, text, attributes): articles with the duplicates that the corpus has, and some that are hard."""
    texts = [*((record.text, record.attributes) for record in articles()[::7][:ARTICLES]), *hard()]
    texts.append((texts[3][0].upper(), texts[3][1]))
    texts.append((f"{texts[5][0]} The end.", texts[5][1]))
    return [(f"r{number:04d}", text, attributes) for number, (text, attributes) in enumerate(texts)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "corpus.yaml"
    content = {
        "name": "corpus",
        "sources": [{"source": SOURCE, "pushed": {}}],
        "dataset": {"name": f"datasets/{SOURCE}", "operators": OPERATORS, "required_attributes": ["topic"]},
    }
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def parquet(corpus: list[tuple[str, str, Mapping[str, str]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parquet")
    texts = [(name, pa.string()) for name in ("record_id", "source", "text")]
    schema = pa.schema([*texts, ("attributes", pa.map_(pa.string(), pa.string()))])
    rows = [
        {"record_id": record_id, "source": SOURCE, "text": text, "attributes": list(attributes.items())}
        for record_id, text, attributes in corpus
    ]
    for number in range(4):
        pq.write_table(pa.Table.from_pylist(rows[number::4], schema), folder / f"{number}.parquet")
    return folder


def bulk(pipeline: Path, source: Path, output: Path, key: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": python_path(), "TIDEMILL_PSEUDONYM_KEY_FILE": str(key)}
    command = [sys.executable, "-m", "gateway.cli.main", "clean", "bulk", str(pipeline), str(source), str(output)]
    return subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)


def verdicts_in(output: Path) -> Verdicts:
    found: Verdicts = {}
    for path in sorted(output.glob("kept/*.parquet")):
        for row in pq.read_table(path).to_pylist():
            found[row["record_id"]] = Verdict(row["text"], dict(row["attributes"]))
    for path in sorted(output.glob("rejected/*.parquet")):
        for row in pq.read_table(path).to_pylist():
            found[row["record_id"]] = Verdict("", {}, row["reason"], row["detail"], row["operator"])
    return found


@pytest.fixture(scope="module")
def in_bulk(cleaning: CleaningProcess, pipeline: Path, parquet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of two processes."""
    output = tmp_path_factory.mktemp("bulk") / "out"
    key = Path(cleaning.environment["TIDEMILL_PSEUDONYM_KEY_FILE"])
    done = bulk(pipeline, parquet, output, key, "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert "Over the whole set: conflicting_labels, exact_dedup, near_dedup." in done.stdout
    return output


@pytest.fixture(scope="module")
def version(
    cleaning: CleaningProcess,
    kafka_bootstrap: str,
    pipeline: Path,
    corpus: list[tuple[str, str, Mapping[str, str]]],
) -> dataset_pb2.DatasetVersion:
    """The version that the service built of the same records, from the bus."""
    stub = cleaning.stub()
    content = yaml.safe_load(pipeline.read_text("utf-8"))["dataset"]
    named = [
        {"name": name, "params": params}
        for item in OPERATORS
        for name, params in ([(item, {})] if isinstance(item, str) else item.items())
    ]
    spec = json_format.ParseDict(
        {"sources": [SOURCE], "operators": named, "required_attributes": content["required_attributes"]},
        dataset_pb2.DatasetSpec(),
    )
    stub.PutDataset(pb.PutDatasetRequest(name=content["name"], spec=spec), timeout=20)
    awaited = pb.AwaitedImport(name="imports/corpus", record_count=len(corpus))
    request = pb.BuildDatasetVersionRequest(dataset=content["name"], request_id="bulk", awaited_imports=[awaited])
    ordered = stub.BuildDatasetVersion(request, timeout=20).dataset_version
    publisher = KafkaEventPublisher(brokers(kafka_bootstrap), "ingest")
    try:
        publisher.publish(
            RECORDS_RAW, [raw_event(record_id, SOURCE, text, "imports/corpus", **a) for record_id, text, a in corpus]
        )
    finally:
        publisher.close()
    stream = stub.WatchDatasetVersion(pb.WatchDatasetVersionRequest(name=ordered.name), timeout=120)
    watched = [answer.dataset_version for answer in stream]
    assert watched[-1].state == dataset_pb2.DatasetVersion.STATE_READY, watched[-1]
    return watched[-1]


@pytest.fixture(scope="module")
def from_bus(version: dataset_pb2.DatasetVersion, kafka_bootstrap: str) -> Verdicts:
    """The verdicts that the worker published on single records."""
    assert version.state == dataset_pb2.DatasetVersion.STATE_READY
    found = {
        m.record_id: Verdict(m.text, dict(m.attributes))
        for _, m in events_of(kafka_bootstrap, RECORDS_CLEAN, cleaning_events_pb2.RecordCleaned, source=SOURCE)
    }
    for _, m in events_of(kafka_bootstrap, RECORDS_REJECTED, cleaning_events_pb2.RecordRejected, source=SOURCE):
        found[m.record_id] = Verdict("", {}, m.reason, m.detail, m.operator)
    return found


def test_the_worker_and_the_online_call_agree_on_every_record(
    cleaning: CleaningProcess, from_bus: Verdicts, corpus: list[tuple[str, str, Mapping[str, str]]]
) -> None:
    stub = cleaning.stub()
    online: Verdicts = {}
    for record_id, text, attributes in corpus:
        request = pb.CleanTextRequest(text=text, attributes=attributes, dataset=f"datasets/{SOURCE}")
        answer = stub.CleanText(request, timeout=20)
        if answer.rejected_reason:
            online[record_id] = Verdict(
                "", {}, answer.rejected_reason, answer.rejected_detail, answer.rejected_operator
            )
        else:
            online[record_id] = Verdict(answer.text, dict(answer.attributes))
    assert len(online) == ARTICLES + HARD + 2
    assert online == from_bus
    assert {"too_short", "repetitive", "missing_field", ""} == {verdict.reason for verdict in online.values()}
    assert any("[EMAIL-" in verdict.text for verdict in online.values())


def test_bulk_gives_the_verdicts_of_the_worker_before_the_whole_set_is_judged(
    from_bus: Verdicts, in_bulk: Path
) -> None:
    found = verdicts_in(in_bulk)
    on_set = {record_id: v for record_id, v in found.items() if v.operator in SET_OPERATORS}
    assert {verdict.reason for verdict in on_set.values()} == {
        "exact_duplicate",
        "near_duplicate",
        "conflicting_labels",
    }
    assert found.keys() == from_bus.keys()
    assert {record_id: v for record_id, v in found.items() if record_id not in on_set} == {
        record_id: v for record_id, v in from_bus.items() if record_id not in on_set
    }
    assert all(not from_bus[record_id].reason for record_id in on_set)


def test_bulk_keeps_and_rejects_what_a_built_version_does(version: dataset_pb2.DatasetVersion, in_bulk: Path) -> None:
    folder = Path(version.uri.removeprefix("file://"))
    rejected = {
        row["record_id"]: Verdict("", {}, row["reason"], row["detail"], row["operator"])
        for row in pq.read_table(folder / "rejected.parquet").to_pylist()
    }
    kept = {row["record_id"]: row["text"] for row in pq.read_table(folder / "train.parquet").to_pylist()}
    found = verdicts_in(in_bulk)
    assert {record_id: v for record_id, v in found.items() if v.reason} == rejected
    assert {record_id: v.text for record_id, v in found.items() if not v.reason} == kept
