"""Reads data-set snapshots (Parquet) as rows of text columns."""

from __future__ import annotations

from pathlib import Path

from services.kit.errors import FailedPreconditionError, InvalidArgumentError


def read_rows(folder: Path, part: str, required: str) -> list[dict[str, str]]:
    """Rows of `train` or `holdout`, in the snapshot's order; null columns become empty text.

    Raises:
        InvalidArgumentError: the snapshot lacks the column that the recipe learns from.
        FailedPreconditionError: the part does not exist or is empty.
    """
    import pyarrow.parquet as pq

    path = folder / f"{part}.parquet"
    if not path.is_file():
        raise FailedPreconditionError(f"The snapshot {folder.name} holds no {part}.parquet.", reason="SNAPSHOT_BROKEN")
    table = pq.read_table(path)
    if required not in table.column_names:
        raise InvalidArgumentError(
            f"The data set has no column {required!r}; it has {', '.join(table.column_names)}.",
            reason="COLUMN_MISSING",
            metadata={"column": required},
        )
    rows = [{name: str(value or "") for name, value in row.items()} for row in table.to_pylist()]
    if not rows:
        raise FailedPreconditionError(
            f"The {part} part of the data set is empty; collect more or loosen the recipe.", reason="DATASET_EMPTY"
        )
    return rows
