"""Data-set snapshots (Parquet): looked at before a run, read as rows of text columns by its worker."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from services.kit.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError, NotFoundError
from services.kit.ids import new_id
from services.kit.storage.artifacts import ArtifactStore, answering, filesystem_of, local_path
from services.kit.storage.signing import TrustedKeys
from services.training.domain.recipe import GenerationTask, Recipe, TextClassificationTask

_PARTS = ("train", "holdout")


class StoredFolders:
    """Implements `services.training.app.ports.Artifacts`."""

    def __init__(self, artifacts: ArtifactStore, trusted: TrustedKeys, cache: Path) -> None:
        """`cache` is a folder for copies of remote builds, for as long as they are read."""
        self._artifacts, self._trusted, self._cache = artifacts, trusted, cache

    def check_build(self, uri: str, digest: str) -> None:
        """See the port."""
        # A folder of its own: an earlier copy would say nothing of what the store holds now.
        copies = self._cache / f"check-{new_id()}"
        copies.mkdir(parents=True)
        try:
            self._trusted.verify_build(self._artifacts.fetch_folder(uri, copies), digest)
        finally:
            shutil.rmtree(copies, ignore_errors=True)

    def check_dataset(self, recipe: Recipe) -> None:
        """See the port. Only the manifest and the files' footers are read."""
        uri = recipe.dataset_uri
        with nullcontext() if local_path(uri) is not None else answering(uri):
            self._check(recipe, *filesystem_of(uri))

    def _check(self, recipe: Recipe, filesystem: Any, path: str) -> None:
        import pyarrow.parquet as pq

        if not filesystem.exists(path):
            wrong = f"the data set {recipe.dataset_name} does not exist at {recipe.dataset_uri}"
            raise NotFoundError(
                f"spec.dataset.uri: {wrong}",
                reason="DATASET_NOT_FOUND",
                metadata={"uri": recipe.dataset_uri},
                violations=[FieldViolation("spec.dataset.uri", wrong)],
            )
        manifest = f"{path}/manifest.json"
        digest = json.loads(filesystem.cat_file(manifest)).get("digest") if filesystem.exists(manifest) else None
        if digest not in (None, recipe.dataset_digest):
            raise FailedPreconditionError(
                f"spec.dataset.digest: {recipe.dataset_uri} holds the snapshot {digest}, not the one that was meant.",
                reason="SNAPSHOT_MISMATCH",
                metadata={"uri": recipe.dataset_uri},
            )
        for part in _PARTS:
            if not filesystem.exists(f"{path}/{part}.parquet"):
                raise _broken(recipe.dataset_uri, part)
            with filesystem.open(f"{path}/{part}.parquet") as stream, pq.ParquetFile(stream) as file:
                _check(part, file.metadata.num_rows, file.schema_arrow.names, recipe.task)


def read_rows(folder: Path, part: str, task: GenerationTask | TextClassificationTask) -> list[dict[str, str]]:
    """Rows of `train` or `holdout`, in the snapshot's order; null columns become empty text.

    Raises:
        InvalidArgumentError: the snapshot lacks the column that the task learns.
        FailedPreconditionError: the part does not exist or is empty.
    """
    import pyarrow.parquet as pq

    path = folder / f"{part}.parquet"
    if not path.is_file():
        raise _broken(folder.name, part)
    table = pq.read_table(path)
    _check(part, table.num_rows, table.column_names, task)
    return [{name: str(value or "") for name, value in row.items()} for row in table.to_pylist()]


def _broken(where: str, part: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"The snapshot {where} holds no {part}.parquet.", reason="SNAPSHOT_BROKEN")


def _check(part: str, rows: int, columns: Collection[str], task: GenerationTask | TextClassificationTask) -> None:
    # Emptiness first: a part without rows may well have no columns either.
    if not rows:
        raise FailedPreconditionError(
            f"The {part} part of the data set is empty; collect more, loosen the recipe's filters or change the "
            "hold-out's fraction.",
            reason="DATASET_EMPTY",
        )
    column, field = task.learnt
    if column not in columns:
        wrong = f"the data set has no column {column!r}; it has {', '.join(columns)}"
        raise InvalidArgumentError(
            f"{field}: {wrong}",
            reason="COLUMN_MISSING",
            metadata={"column": column},
            violations=[FieldViolation(field, wrong)],
        )
