"""Shares of a data set's training records that are not learnt, but used for something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.kit.errors import FailedPreconditionError
from services.kit.ids import sha256_hex

_PARENT = "variant_of"
"""Of a variant that augmentation made: the record that it varies."""
Row = dict[str, str]


def in_share(purpose: str, row: Mapping[str, str], share: float) -> bool:
    """Whether a record is among the share of them for a purpose; by its id alone, and its variants go with it."""
    return int(sha256_hex(purpose, row.get(_PARENT) or row["record_id"])[:12], 16) < share * 16**12


def validation_split(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Splits the training records of a trial.

    Args:
        rows: the records.
        share: of them that are measured on.

    Returns:
        What is learnt, and what is measured on, without variants: a hold-out has none either.

    Raises:
        FailedPreconditionError: one of the two is empty.
    """
    learnt = [row for row in rows if not in_share("validation", row, share)]
    measured = [row for row in rows if in_share("validation", row, share) and not row.get(_PARENT)]
    if not learnt or not measured:
        wanted = "learn" if measured else "measure"
        raise FailedPreconditionError(
            f"trial.validation_share: {share:g} of {len(rows)} training records leaves none to {wanted} for a trial; "
            "choose another share, or collect more.",
            reason="DATASET_EMPTY",
        )
    return learnt, measured
