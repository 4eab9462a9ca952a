"""Compares what a mesh acknowledged with what it stores, by id and digest, from outside.

It uses only the public doors and Kafka, as any caller can, and no code of a service, so that it does not share a
service's errors.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.kit.bus.topics import FEEDBACK, PREDICTIONS, RECORDS_CLEAN, RECORDS_RAW, RECORDS_REJECTED, Topic


def digest(content: bytes | str) -> str:
    """SHA-256 of a content, in hex."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


@dataclass(frozen=True, slots=True)
class Finding:
    """The differences in one place; ids, sorted."""

    place: str
    acknowledged: int
    lost: tuple[str, ...] = ()
    """Acknowledged and not there."""
    phantom: tuple[str, ...] = ()
    """There and sent by no one."""
    duplicate: tuple[str, ...] = ()
    """There more than once."""
    altered: tuple[str, ...] = ()
    """There, with another content than was acknowledged."""

    @property
    def sound(self) -> bool:
        """Whether there are no differences."""
        return not (self.lost or self.phantom or self.duplicate or self.altered)

    def __str__(self) -> str:
        wrong = {
            "lost": self.lost,
            "phantom": self.phantom,
            "duplicate": self.duplicate,
            "altered": self.altered,
        }
        parts = [f"{len(ids)} {name} ({', '.join(ids[:5])}…)" for name, ids in wrong.items() if ids]
        return f"{self.place}: {self.acknowledged} acknowledged, {', '.join(parts) or 'all there once'}"


def compare(
    place: str,
    acknowledged: Mapping[str, str],
    found: Iterable[tuple[str, str]],
    uncertain: Mapping[str, str] | None = None,
) -> Finding:
    """Compares what is found in a place with what was acknowledged.

    Args:
        place: named in the finding.
        acknowledged: digest by id of what the mesh accepted.
        found: id and digest of everything that is stored.
        uncertain: digest by id of what was sent without an answer; it may be stored once, or not at all.
    """
    uncertain = uncertain or {}
    there = list(found)
    counts = Counter(each for each, _ in there)
    sent = {**uncertain, **acknowledged}
    return Finding(
        place=place,
        acknowledged=len(acknowledged),
        lost=tuple(sorted(acknowledged.keys() - counts.keys())),
        phantom=tuple(sorted(counts.keys() - sent.keys())),
        duplicate=tuple(sorted(each for each, count in counts.items() if count > 1)),
        altered=tuple(sorted({each for each, content in there if each in sent and sent[each] != content})),
    )


class Ledger:
    """What a test sent, and which of it was acknowledged. Thread-safe; a file gets a line of JSON for each change."""

    def __init__(self, path: Path | None = None) -> None:
        self.acknowledged: dict[str, str] = {}
        self.uncertain: dict[str, str] = {}
        self._path = path
        self._lock = threading.Lock()

    def sent(self, record: str, content: str) -> None:
        """Call this before sending: from now on it may be stored."""
        self._note(self.uncertain, record, content, "sent")

    def accepted(self, record: str, content: str) -> None:
        """Call this after the acknowledgement: from now on it must be stored."""
        self._note(self.acknowledged, record, content, "accepted")

    def _note(self, book: dict[str, str], record: str, content: str, what: str) -> None:
        with self._lock:
            book[record] = digest(content)
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"what": what, "record": record, "digest": digest(content)}) + "\n")

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Reads a ledger from its file."""
        ledger = cls()
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            book = ledger.acknowledged if entry["what"] == "accepted" else ledger.uncertain
            book[entry["record"]] = entry["digest"]
        return ledger


def raw_records(bootstrap: str, source: str) -> list[tuple[str, str]]:
    """Id and digest of each accepted record of a source on `tidemill.records.raw`."""
    from tidemill.ingest.v1.ingest_events_pb2 import RecordIngested

    records = [event.record for event in _events(bootstrap, RECORDS_RAW, RecordIngested)]
    return [(record.record_id, digest(record.text)) for record in records if record.source == source]


def served_answers(bootstrap: str) -> list[tuple[str, str]]:
    """Name of each answer on `tidemill.predictions`, as id and as content."""
    from tidemill.inference.v1.inference_events_pb2 import PredictionServed

    return [(event.answer, digest(event.answer)) for event in _events(bootstrap, PREDICTIONS, PredictionServed)]


def recorded_feedback(bootstrap: str) -> list[tuple[str, str]]:
    """Each feedback on `tidemill.feedback`: the last word of its correction, and the correction's digest."""
    from tidemill.pipeline.v1.pipeline_events_pb2 import FeedbackRecorded

    events = _events(bootstrap, FEEDBACK, FeedbackRecorded)
    return [(event.correction.rpartition(" ")[2], digest(event.correction)) for event in events]


def verdicts(bootstrap: str, dataset: str) -> tuple[set[str], set[str]]:
    """Ids of the records that were published as cleaned for a data set, and of those published as rejected."""
    from tidemill.cleaning.v1.cleaning_events_pb2 import RecordCleaned, RecordRejected

    def ids(topic: Topic, kind: Any) -> set[str]:
        return {event.record_id for event in _events(bootstrap, topic, kind) if event.dataset == dataset}

    return ids(RECORDS_CLEAN, RecordCleaned), ids(RECORDS_REJECTED, RecordRejected)


def snapshot_rows(folder: Path) -> dict[str, list[str]]:
    """Ids in each file of a data-set version, `train`, `holdout` and `rejected`."""
    import pyarrow.parquet as parquet

    return {
        name: [
            str(record)
            for record in parquet.read_table(folder / f"{name}.parquet", columns=["record_id"]).column(0).to_pylist()
        ]
        for name in ("train", "holdout", "rejected")
    }


def snapshot_records(folder: Path) -> list[tuple[str, str]]:
    """Id and digest of the text of each record that a data-set version keeps, in `train` and `holdout`."""
    import pyarrow.parquet as parquet

    rows: list[tuple[str, str]] = []
    for name in ("train", "holdout"):
        table = parquet.read_table(folder / f"{name}.parquet", columns=["record_id", "text"])
        rows += [(str(row["record_id"]), digest(row["text"])) for row in table.to_pylist()]
    return rows


def _events(bootstrap: str, topic: Topic, kind: Any) -> list[Any]:
    """The events of a topic; messages with the same CloudEvents type and id are one event."""
    from tests.topics import read_all

    name = kind.DESCRIPTOR.full_name.encode()
    unique = {headers["ce_id"]: value for headers, value in read_all(bootstrap, topic) if headers["ce_type"] == name}
    return [kind.FromString(value) for value in unique.values()]


def main() -> int:
    """`python -m tests.faults.reconciler LEDGER BOOTSTRAP SOURCE`: prints differences; returns 1 if there are any.

    TIDEMILL_KAFKA_USER and TIDEMILL_KAFKA_PASSWORD_FILE name the user at the brokers.
    """
    path, bootstrap, source = sys.argv[1:]
    ledger = Ledger.read(Path(path))
    finding = compare("tidemill.records.raw", ledger.acknowledged, raw_records(bootstrap, source), ledger.uncertain)
    sys.stdout.write(f"{finding}\n")
    return 0 if finding.sound else 1


if __name__ == "__main__":
    sys.exit(main())
