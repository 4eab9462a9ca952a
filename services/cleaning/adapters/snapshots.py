"""Snapshots as folders of Parquet files and a manifest in the artefact store."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.cleaning.app.ports import Fate, Placement, RejectedRow, SnapshotContent, SnapshotRow
from services.cleaning.domain.dataset import SnapshotSummary, dataset_id
from services.cleaning.domain.record import RecordKey, Rejection
from services.kit.errors import FailedPreconditionError
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
            text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            (folder / MANIFEST).write_text(text, encoding="utf-8")
            self._store.put_folder(folder, uri)
        return _summary(uri, manifest)

    def fate(self, snapshot: SnapshotSummary, record: RecordKey) -> Fate:
        """See the port. Rows are sorted by id, so few row groups have to be read."""
        places = [Placement.TRAIN, Placement.HOLDOUT, Placement.REJECTED]
        if snapshot.feedback:
            places.append(Placement.HELD_BACK)
        for placement in places:
            rows = _rows_of(f"{snapshot.uri}/{placement.value}.parquet", record, placement is Placement.REJECTED)
            if not rows:
                continue
            if placement is not Placement.REJECTED:
                return Fate(placement)
            # Snapshots of earlier releases have no column for the operator.
            row = rows[0]
            return Fate(placement, Rejection(row["reason"], row["detail"], row.get("operator") or ""))
        return Fate(Placement.ABSENT)

    def _uri(self, dataset: str, digest: str) -> str:
        return self._store.uri("datasets", dataset_id(dataset), digest[:16])


def _rows_of(uri: str, record: RecordKey, whole: bool) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    filesystem, path = filesystem_of(uri)
    source, record_id = record
    try:
        with translate_store_errors(uri):
            table = pq.read_table(
                path,
                filesystem=filesystem,
                columns=None if whole else ["record_id"],
                filters=[("record_id", "==", record_id), ("source", "==", source)],
            )
    except FileNotFoundError as error:
        raise FailedPreconditionError(
            f"{uri} is missing; build the data set again.", reason="SNAPSHOT_DAMAGED", metadata={"uri": uri}
        ) from error
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
    )


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
