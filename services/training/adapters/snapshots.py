"""Data-set snapshots (Parquet): checked before a run, read as rows of text columns by its worker."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from services.kit.errors import (
    DataLossError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    snapshot_damaged,
)
from services.kit.ids import new_id
from services.kit.storage.artifacts import ArtifactStore, file_digest, filesystem_of, local_path, translate_store_errors
from services.kit.storage.signing import TrustedKeys
from services.training.domain.training_spec import TrainingSpec

_PARTS = ("train", "holdout")
_CORRECTIONS = "corrections.parquet"
_MANIFEST = "manifest.json"
WEIGHT_COLUMN = "feedback_weight"
"""Of records that come from feedback: how often they are learnt from."""
_MAX_WEIGHT = 100


class StoredFolders:
    """Implements `services.training.app.ports.Artifacts`."""

    def __init__(self, artifacts: ArtifactStore, trusted: TrustedKeys, cache: Path) -> None:
        """`cache` is a folder for temporary copies of remote builds."""
        self._artifacts, self._trusted, self._cache = artifacts, trusted, cache

    def check_build(self, uri: str, digest: str) -> None:
        """See the port."""
        # A new folder: an earlier copy would not show what the store contains now.
        copies = self._cache / f"check-{new_id()}"
        copies.mkdir(parents=True)
        try:
            self._trusted.verify_build(self._artifacts.fetch_folder(uri, copies), digest)
        finally:
            shutil.rmtree(copies, ignore_errors=True)

    def check_dataset(self, spec: TrainingSpec) -> None:
        """See the port. Of a remote snapshot, only the manifest and the files' sizes and footers are read."""
        uri = spec.dataset_uri
        self._artifacts.check_contains(uri, "spec.dataset.uri")
        with nullcontext() if local_path(uri) is not None else translate_store_errors(uri):
            self._check(spec, *filesystem_of(uri))

    def _check(self, spec: TrainingSpec, filesystem: Any, path: str) -> None:
        import pyarrow.parquet as pq

        if not filesystem.exists(path):
            wrong = f"the data set {spec.dataset_name} does not exist at {spec.dataset_uri}"
            raise NotFoundError(
                f"spec.dataset.uri: {wrong}",
                reason="DATASET_NOT_FOUND",
                metadata={"uri": spec.dataset_uri},
                violations=[FieldViolation("spec.dataset.uri", wrong)],
            )
        file = f"{path}/{_MANIFEST}"
        manifest = _manifest(filesystem.cat_file(file), spec.dataset_uri) if filesystem.exists(file) else {}
        digest = manifest.get("digest")
        if digest not in (None, spec.dataset_digest):
            raise FailedPreconditionError(
                f"spec.dataset.digest: {spec.dataset_uri} contains the snapshot {digest}, not the expected one.",
                reason="SNAPSHOT_MISMATCH",
                metadata={"uri": spec.dataset_uri},
            )
        own = local_path(spec.dataset_uri)
        if own is not None:
            check_files(own, spec.dataset_uri)
        for part in _PARTS:
            name = f"{part}.parquet"
            if not filesystem.exists(f"{path}/{name}"):
                raise snapshot_damaged(spec.dataset_uri, name, "it is missing")
            _check_size(manifest, name, filesystem.size(f"{path}/{name}"), spec.dataset_uri)
            with (
                _parquet_errors(spec.dataset_uri, name),
                filesystem.open(f"{path}/{name}") as stream,
                pq.ParquetFile(stream) as parquet,
            ):
                rows, columns = parquet.metadata.num_rows, parquet.schema_arrow.names
            _check(part, rows, columns, [*spec.learnt, *(spec.sliced if part == "holdout" else ())])


def check_files(folder: Path, uri: str) -> None:
    """Compares the files of a snapshot with the sizes and digests in its manifest; reads all files.

    Args:
        folder: the snapshot on this machine; one without a manifest is not checked.
        uri: where it came from, for the error.

    Raises:
        DataLossError: with reason SNAPSHOT_DAMAGED; metadata `part` and `cause`.
    """
    if not (folder / _MANIFEST).is_file():
        return
    manifest = _manifest((folder / _MANIFEST).read_bytes(), uri)
    held_back = [_CORRECTIONS] if _described(manifest, _CORRECTIONS) else []
    for name in (*(f"{part}.parquet" for part in _PARTS), *held_back):
        if not (folder / name).is_file():
            raise snapshot_damaged(uri, name, "it is missing")
        _check_size(manifest, name, (folder / name).stat().st_size, uri)
        expected = _described(manifest, name).get("sha256")
        found = file_digest(folder / name) if expected else None
        if expected != found:
            raise snapshot_damaged(uri, name, f"its sha256 is {found}, not {expected}")


def _manifest(content: bytes, uri: str) -> Mapping[str, Any]:
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise snapshot_damaged(uri, _MANIFEST, str(error)) from error
    if not isinstance(manifest, dict):
        raise snapshot_damaged(uri, _MANIFEST, "it is not a JSON object")
    return manifest


def _described(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The manifest's entry for a file; empty for snapshots of other tools."""
    files = manifest.get("files")
    described = files.get(name) if isinstance(files, dict) else None
    return described if isinstance(described, dict) else {}


def _check_size(manifest: Mapping[str, Any], name: str, size: int, uri: str) -> None:
    expected = _described(manifest, name).get("bytes", size)
    if size != expected:
        raise snapshot_damaged(uri, name, f"it has {size} bytes, not {expected}")


@contextmanager
def _parquet_errors(uri: str, name: str) -> Iterator[None]:
    """Translates errors of the Parquet reader into errors that name the damaged part."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, EOFError, ValueError) as error:
        raise snapshot_damaged(uri, name, f"{type(error).__name__}: {error}") from error
    except OSError as error:
        # Errors of the operating system have a number and do not mean damage; Arrow's own have none.
        if error.errno is not None:
            raise
        raise snapshot_damaged(uri, name, str(error)) from error


def read_rows(folder: Path, part: str, learnt: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Rows of `train` or `holdout`, in the snapshot's order; null columns become empty text.

    Args:
        folder: the snapshot.
        part: `train` or `holdout`.
        learnt: required columns, each with the field of the spec that names it.

    Raises:
        InvalidArgumentError: the snapshot lacks one of the columns.
        FailedPreconditionError: the part is empty.
        DataLossError: the file is missing or cannot be read.
    """
    import pyarrow.parquet as pq

    path = folder / f"{part}.parquet"
    if not path.is_file():
        raise snapshot_damaged(str(folder), path.name, "it is missing")
    with _parquet_errors(str(folder), path.name):
        table = pq.read_table(path)
    _check(part, table.num_rows, table.column_names, learnt)
    return [{name: str(value or "") for name, value in row.items()} for row in table.to_pylist()]


def read_corrections(folder: Path, task_column: tuple[str, str]) -> list[dict[str, str]]:
    """Rows of feedback that was held back to measure what was learnt, in the snapshot's order; empty without any.

    Args:
        folder: the snapshot.
        task_column: the column that the task learns, with the field of the spec that names it.

    Raises:
        InvalidArgumentError: the snapshot lacks the column.
        DataLossError: the file cannot be read.
    """
    import pyarrow.parquet as pq

    path = folder / _CORRECTIONS
    if not path.is_file():
        return []
    with _parquet_errors(str(folder), path.name):
        rows = pq.read_metadata(path).num_rows
    return read_rows(folder, "corrections", [task_column]) if rows else []


def by_weight(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Rows as often as their `feedback_weight` says; once without one.

    Raises:
        DataLossError: a weight is not a number from 1 to 100.
    """
    found: list[dict[str, str]] = []
    for row in rows:
        weight = row.get(WEIGHT_COLUMN, "")
        if weight and not (weight.isascii() and weight.isdecimal() and 1 <= int(weight) <= _MAX_WEIGHT):
            cause = f"the record {row.get('record_id')} has the weight {weight!r}"
            raise DataLossError(
                f"{WEIGHT_COLUMN}: {cause}; it must be 1 to {_MAX_WEIGHT}. Build the data set again.",
                reason="SNAPSHOT_DAMAGED",
                metadata={"part": "train.parquet", "cause": cause},
            )
        found += [row] * (int(weight) if weight else 1)
    return found


def _check(part: str, rows: int, columns: Collection[str], learnt: Sequence[tuple[str, str]]) -> None:
    # Checked first: a part without rows may also have no columns.
    if not rows:
        raise FailedPreconditionError(
            f"The {part} part of the data set is empty; collect more, loosen the recipe's filters or change the "
            "hold-out's fraction.",
            reason="DATASET_EMPTY",
        )
    for column, field in learnt:
        if column not in columns:
            wrong = f"the data set has no column {column!r}; it has {', '.join(columns)}"
            raise InvalidArgumentError(
                f"{field}: {wrong}",
                reason="COLUMN_MISSING",
                metadata={"column": column},
                violations=[FieldViolation(field, wrong)],
            )
