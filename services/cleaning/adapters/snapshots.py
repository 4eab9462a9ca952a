"""Snapshots as folders of Parquet files and a manifest in the artefact store."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.cleaning.app.ports import Fate, Placement, RejectedRow, SnapshotContent, SnapshotRow, Variant
from services.cleaning.domain.augmentation import OPERATOR_COLUMN, PARENT_COLUMN
from services.cleaning.domain.dataset import SnapshotSummary, dataset_id
from services.cleaning.domain.record import FEEDBACK_PREFIX, Erased, RecordKey, Rejection
from services.kit.errors import FailedPreconditionError, snapshot_damaged
from services.kit.storage.artifacts import ArtifactStore, filesystem_of, translate_store_errors

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_ROWS_IN_GROUP = 16_384


class FolderSnapshots:
    """Implements `services.cleaning.app.ports.SnapshotStore`: `<root>/datasets/<name>/<digest[:16]>/`."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def find(self, dataset: str, digest: str) -> SnapshotSummary | None:
        """See the port. The manifest is written last, so a folder with a manifest was once complete.

        A snapshot whose files no longer match its manifest is deleted, so that it is written again.
        """
        uri = self._uri(dataset, digest)
        text = self._store.read_file(f"{uri}/{MANIFEST}")
        if text is None:
            return None
        manifest = json.loads(text)
        if manifest["digest"] != digest:
            raise FailedPreconditionError(
                f"{uri} contains another snapshot, {manifest['digest']}.",
                reason="SNAPSHOT_MISMATCH",
                metadata={"uri": uri},
            )
        if damage := self._damage(uri, manifest):
            logger.error("SNAPSHOT_DAMAGED: %s: %s; the snapshot is removed and built again", uri, damage)
            self._store.discard_folder(uri)
            return None
        return _summary(uri, manifest)

    def _damage(self, uri: str, manifest: Mapping[str, Any]) -> str:
        """The damage to a snapshot's files; empty if they are intact."""
        for name, described in sorted(manifest["files"].items()):
            state = self._store.file_state(f"{uri}/{name}")
            if state is None:
                return f"{name} is missing"
            if state != (described["bytes"], described["sha256"]):
                return f"{name} ({state[0]} bytes) is not the file in the manifest ({described['bytes']} bytes)"
        return ""

    def write(self, content: SnapshotContent) -> SnapshotSummary:
        """See the port."""
        uri = self._uri(content.dataset, content.digest)
        with tempfile.TemporaryDirectory(prefix="tidemill-snapshot-") as scratch:
            folder = Path(scratch) / "snapshot"
            folder.mkdir()
            files = {
                "train.parquet": _record_table(content.train, content.columns),
                "holdout.parquet": _record_table(content.holdout, content.columns),
                "rejected.parquet": _rejected_table(content.rejected),
            }
            if content.corrections is not None:
                files["corrections.parquet"] = _record_table(content.corrections, content.columns)
            described = {name: _write(folder / name, table) for name, table in files.items()}
            manifest = {**content.manifest, "files": described}
            (folder / MANIFEST).write_text(_manifest_text(manifest), encoding="utf-8")
            self._store.put_folder(folder, uri)
        return _summary(uri, manifest)

    def fate(self, snapshot: SnapshotSummary, record: RecordKey) -> Fate:
        """See the port. Rows are sorted by id, so few row groups have to be read."""
        places = [Placement.TRAIN, Placement.HOLDOUT, Placement.REJECTED]
        if snapshot.feedback:
            places.append(Placement.HELD_BACK)
        for placement in places:
            uri = f"{snapshot.uri}/{placement.value}.parquet"
            rows = _rows_of(uri, record, None if placement is Placement.REJECTED else ["record_id"])
            if not rows:
                continue
            if placement is Placement.TRAIN and snapshot.variants:
                made = _rows_of(uri, record, ["record_id", OPERATOR_COLUMN, "text"], PARENT_COLUMN)
                return Fate(
                    placement, variants=[Variant(row["record_id"], row[OPERATOR_COLUMN], row["text"]) for row in made]
                )
            if placement is not Placement.REJECTED:
                return Fate(placement)
            # Snapshots of earlier releases have no column for the operator.
            row = rows[0]
            return Fate(placement, Rejection(row["reason"], row["detail"], row.get("operator") or ""))
        return Fate(Placement.ABSENT)

    def rows(
        self, snapshot: SnapshotSummary, part: Placement
    ) -> tuple[int, Iterator[Mapping[str, Sequence[str | None]]]]:
        """See the port."""
        import pyarrow.parquet as pq

        uri = f"{snapshot.uri}/{part.value}.parquet"
        filesystem, path = filesystem_of(uri)
        try:
            with translate_store_errors(uri):
                file = pq.ParquetFile(path, filesystem=filesystem)
        except FileNotFoundError as error:
            raise snapshot_damaged(snapshot.uri, f"{part.value}.parquet", "it is missing") from error

        def batches() -> Iterator[Mapping[str, Sequence[str | None]]]:
            with file, translate_store_errors(uri):
                for batch in file.iter_batches(_ROWS_IN_GROUP // 4):
                    yield batch.to_pydict()

        return file.metadata.num_rows, batches()

    def near_overlap(self, snapshot: SnapshotSummary) -> int:
        """See the port."""
        text = self._store.read_file(f"{snapshot.uri}/{MANIFEST}")
        if text is None:
            raise snapshot_damaged(snapshot.uri, MANIFEST, "it is missing")
        return int(json.loads(text)["contamination"]["near_overlap"])

    def erase(self, uri: str, gone: Erased, moment: datetime) -> int:
        """See the port. Each file is replaced as a whole and the manifest last; a repeat brings it up to the files."""
        text = self._store.read_file(f"{uri}/{MANIFEST}")
        if text is None:
            return 0
        manifest = json.loads(text)
        described: dict[str, Any] = dict(manifest["files"])
        before = int(manifest.get("erased", {}).get("rows", 0))
        with tempfile.TemporaryDirectory(prefix="tidemill-erase-") as scratch:
            for name, known in sorted(manifest["files"].items()):
                table = _table(f"{uri}/{name}")
                if table is None:
                    logger.warning("%s/%s is missing, so nothing is erased from it", uri, name)
                    continue
                left = _without(table, gone)
                if left.num_rows == known["rows"]:
                    continue
                path = Path(scratch) / name
                described[name] = _write(path, left)
                if left.num_rows != table.num_rows:
                    self._store.replace_file(path, f"{uri}/{name}")
            left_out = sum(int(manifest["files"][name]["rows"]) - int(described[name]["rows"]) for name in described)
            rows = before + left_out
            if not left_out:
                return before
            erased = {"rows": rows, "update_time": moment.isoformat()}
            manifest = {**manifest, "files": described, "erased": erased}
            path = Path(scratch) / MANIFEST
            path.write_text(_manifest_text(manifest), encoding="utf-8")
            self._store.replace_file(path, f"{uri}/{MANIFEST}")
        return rows

    def _uri(self, dataset: str, digest: str) -> str:
        return self._store.uri("datasets", dataset_id(dataset), digest[:16])


def _rows_of(uri: str, record: RecordKey, columns: list[str] | None, column: str = "record_id") -> list[dict[str, Any]]:
    """The rows that have a record's id in a column; all columns of them if None are named."""
    import pyarrow.parquet as pq

    filesystem, path = filesystem_of(uri)
    source, record_id = record
    try:
        with translate_store_errors(uri):
            table = pq.read_table(
                path,
                filesystem=filesystem,
                columns=columns,
                filters=[(column, "==", record_id), ("source", "==", source)],
            )
    except FileNotFoundError as error:
        folder, _, part = uri.rpartition("/")
        raise snapshot_damaged(folder, part, "it is missing") from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _summary(uri: str, manifest: Mapping[str, Any]) -> SnapshotSummary:
    counts = manifest["counts"]
    return SnapshotSummary(
        manifest["digest"],
        uri,
        counts["records_in"],
        counts["train"],
        counts["holdout"],
        counts["rejected_by_reason"],
        counts.get("feedback", {}),
        manifest.get("erased", {}).get("rows", 0),
        manifest.get("augmentation", {}).get("variants", {}),
        manifest.get("augmentation", {}).get("dropped", {}),
    )


def _manifest_text(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _table(uri: str) -> pa.Table | None:
    """The content of a file; None if it does not exist."""
    import pyarrow.parquet as pq

    filesystem, path = filesystem_of(uri)
    try:
        with translate_store_errors(uri):
            return pq.read_table(path, filesystem=filesystem)
    except FileNotFoundError:
        return None


def _without(table: pa.Table, gone: Erased) -> pa.Table:
    """The rows that are not erased; without a column for the person, records of feedback are found by their answers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    answers = pa.array(sorted(gone.answers), pa.string())
    theirs = pc.is_in(table["record_id"], value_set=answers)
    if PARENT_COLUMN in table.column_names:
        theirs = pc.or_(theirs, pc.is_in(table[PARENT_COLUMN], value_set=answers))
    if "feedback_person" in table.column_names:
        theirs = pc.or_(theirs, pc.is_in(table["feedback_person"], value_set=pa.array([gone.person])))
    of_feedback = pc.starts_with(table["source"], FEEDBACK_PREFIX)
    return table.filter(pc.invert(pc.and_(theirs, of_feedback)))


def _record_table(rows: Sequence[SnapshotRow], columns: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    data: dict[str, list[str | None]] = {
        "record_id": [row.record_id for row in rows],
        "source": [row.source for row in rows],
        "text": [row.text for row in rows],
    }
    for column in columns:
        # An attribute may have the name of one of the standard columns; the standard column wins.
        if column not in data:
            data[column] = [row.attributes.get(column) for row in rows]
    return pa.table(data, schema=pa.schema([(name, pa.string()) for name in data]))


def _rejected_table(rows: Sequence[RejectedRow]) -> pa.Table:
    import pyarrow as pa

    names = ("record_id", "source", "reason", "detail", "operator")
    data = {name: [getattr(row, name) for row in rows] for name in names}
    return pa.table(data, schema=pa.schema([(name, pa.string()) for name in names]))


def _write(path: Path, table: pa.Table) -> dict[str, Any]:
    import pyarrow.parquet as pq

    # The file contains neither time nor host, so that equal rows give equal bytes.
    pq.write_table(table, path, compression="zstd", row_group_size=_ROWS_IN_GROUP, store_schema=False)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"rows": table.num_rows, "bytes": path.stat().st_size, "sha256": digest}
