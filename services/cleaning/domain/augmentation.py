"""What is made of the training part beside its records: variants, each a record that names its parent."""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.cleaning.domain.recipe import OperatorSpec

PARENT_COLUMN = "variant_of"
"""Column of an augmented data set: the id of the record of the same source that a variant was made of."""
OPERATOR_COLUMN = "variant_by"
"""Column of an augmented data set: the operator that made a variant."""

_VARIANT = re.compile(r"(.+)~([1-9]\d?)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class SimilarityFilter:
    """Keeps variants whose embedding by an encoder has at least this cosine with their parent's."""

    address: str
    model: str
    min_cosine: float
    key_env: str = ""
    private: bool = False


@dataclass(frozen=True, slots=True)
class LabelFilter:
    """Keeps variants that a classifier gives the label of their parent."""

    address: str
    model: str
    attribute: str = "label"
    key_env: str = ""
    private: bool = False


@dataclass(frozen=True, slots=True)
class AugmentSpec:
    """How variants are made: operators of which each variant takes one, and for how many records."""

    operators: tuple[OperatorSpec, ...]
    seed: int = 0
    per_record: int = 1
    """Variants of one record."""
    rate: float = 1.0
    """Share of the training records that get variants, above 0 and up to 1."""
    keep: tuple[str, ...] = ()
    """Terms that no operator changes."""
    similarity: SimilarityFilter | None = None
    labels: LabelFilter | None = None


def variant_id(parent: str, number: int) -> str:
    """Id of a record's variant; numbers begin at 1."""
    return f"{parent}~{number}"


def parent_id(record_id: str) -> str | None:
    """The id of the record that a variant of this id would be made of; None if it is not the id of a variant."""
    found = _VARIANT.fullmatch(record_id)
    return found[1] if found else None
