"""Erasing what a person taught from a running service that is killed meanwhile."""

from __future__ import annotations

import stat
from pathlib import Path

import grpc
import pyarrow.parquet as pq
import pytest
from tidemill.cleaning.v1 import cleaning_service_pb2 as pb
from tidemill.cleaning.v1.dataset_pb2 import HoldoutSpec

from infra.stack.testing import brokers
from services.kit.bus.kafka import KafkaEventPublisher
from services.kit.bus.topics import RECORDS_RAW
from services.kit.storage.artifacts import local_path
from tests.integration.cleaning.bus import raw_event
from tests.integration.cleaning.conftest import CleaningProcess
from tests.integration.cleaning.test_service import Version, build, operator, put, watch
from tests.trees import entries_below
from tests.waiting import wait_until

pytestmark = pytest.mark.real
DORA, BEN = "p-00000000000d05a0", "p-0000000000000be4"
SECRET = "a thing that only dora says"
SOURCE = "answers.erasing"


def _texts(version: Version) -> list[str]:
    folder = local_path(version.uri)
    assert folder is not None
    tables = [pq.read_table(folder / f"{part}.parquet") for part in ("train", "holdout", "corrections")]
    return [row["text"] for table in tables for row in table.to_pylist()]


def _left(cleaning: CleaningProcess) -> list[str]:
    """Files of the service that say it still."""
    found = entries_below(Path(cleaning.folder))
    files = [path for path, entry in found if stat.S_ISREG(entry.st_mode) and path.suffix != ".log"]
    return [path.name for path in files if _says(path)]


def _says(path: Path) -> bool:
    try:
        return SECRET.encode() in path.read_bytes()
    except FileNotFoundError:  # a temporary file
        return False


def test_erased_texts_are_gone_also_when_the_service_is_killed(cleaning: CleaningProcess, kafka_bootstrap: str) -> None:
    publisher = KafkaEventPublisher(brokers(kafka_bootstrap), "ingest")
    put(
        cleaning,
        "erasing",
        operator("normalize_whitespace"),
        sources=["tickets", SOURCE],
        feedback_sources=[SOURCE],
        holdout=HoldoutSpec(fraction=0.2),
    )
    events = [raw_event(f"t{n}", "tickets", f"ticket {n} of someone", "imports/t") for n in range(40)]
    for n in range(20):
        for person, text in ((DORA, f"{SECRET} {n}"), (BEN, f"what ben says {n}")):
            attributes = {"feedback_person": person, "feedback_kind": "correction", "feedback_weight": "1"}
            events.append(raw_event(f"answers/{person}-{n}", SOURCE, text, "imports/f", **attributes))
    publisher.publish(RECORDS_RAW, events)
    version = watch(cleaning, build(cleaning, "erasing", {"imports/t": 40, "imports/f": 40}))[-1]
    before = _texts(version)
    assert len(before) == 80
    assert _left(cleaning)

    order = pb.EraseFeedbackRequest(person=DORA)
    pending = cleaning.stub().EraseFeedback.future(order, timeout=60)
    cleaning.kill()
    with pytest.raises(grpc.RpcError):
        pending.result()
    cleaning.start()
    # A late repeat of the messages brings nothing back.
    publisher.publish(RECORDS_RAW, events)
    publisher.close()

    def erased() -> pb.EraseFeedbackResponse | None:
        try:
            return cleaning.stub().EraseFeedback(order, timeout=60)
        except grpc.RpcError:
            return None

    wait_until(erased, "an erasure", 60)
    after = (
        cleaning.stub().GetDatasetVersion(pb.GetDatasetVersionRequest(name=version.name), timeout=20).dataset_version
    )
    assert (after.erased_count, after.digest, after.train_count) == (20, version.digest, version.train_count)
    assert sorted(_texts(after)) == sorted(text for text in before if SECRET not in text)
    following = watch(cleaning, build(cleaning, "erasing", {"imports/t": 40}, request_id="after"))[-1]
    assert sorted(_texts(following)) == sorted(_texts(after))
    wait_until(lambda: not _left(cleaning) or None, "files without it", 60)
