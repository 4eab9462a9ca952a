"""Labels of texts as a data set has them, several of a text, and the thresholds from which they are assigned."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from services.kit.errors import FailedPreconditionError
from services.training.engine.record_shares import in_share

if TYPE_CHECKING:
    import numpy as np

_FEW = 5
_PLAIN, _LEAST = 0.5, 1e-6


def labels_of_row(row: Mapping[str, str], column: str, separator: str) -> list[str]:
    """The labels in a record's column, sorted, each once.

    Args:
        row: the record.
        column: holds a JSON list of texts, or labels with separators between them.
        separator: empty for a JSON list.

    Raises:
        FailedPreconditionError: it is not such a list, or a label is empty; the message names the record.
    """
    try:
        labels = _separated(row[column], separator) if separator else _listed(row[column])
        if not all(labels):
            raise ValueError("one of its labels is empty")
    except ValueError as error:
        record = row.get("record_id", "")
        raise FailedPreconditionError(
            f"spec.multi_label_classification.labels_field: column {column!r} of record {record} cannot be used: "
            f"{error}.",
            reason="LABELS_UNREADABLE",
            metadata={"column": column, "record": record},
        ) from error
    return sorted(set(labels))


def _separated(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator)] if text.strip() else []


def _listed(text: str) -> list[str]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError(
            f"{text[:60]!r} is not a JSON list of texts, which is [] without labels; where labels are separated, name "
            "the separator"
        )
    return [item.strip() for item in found]


def calibrates(row: Mapping[str, str], share: float) -> bool:
    """Whether a training record is among the share of them that chooses thresholds; its variants go with it."""
    return in_share("calibration", row, share)


def best_thresholds(scores: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> list[float]:
    """The threshold of each label with the highest F1 (Yang 2001, "A study of thresholding strategies", SCut).

    It lies in the middle between two scores; of equally good ones the nearest to 0.5 counts. A label that fewer than 5
    of the texts have, or lack, keeps 0.5: with so few the best threshold is a matter of chance.

    Args:
        scores: probabilities [texts, labels].
        wanted: whether the text has the label [texts, labels].
    """
    return [
        _best(scores[:, at], wanted[:, at]) if min(wanted[:, at].sum(), (~wanted[:, at]).sum()) >= _FEW else _PLAIN
        for at in range(scores.shape[1])
    ]


def _best(scores: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    import numpy as np

    order = np.argsort(-scores, kind="stable")
    ranked, right = scores[order].astype(np.float64), wanted[order]
    given = np.arange(1, len(ranked) + 1)
    f1 = 2 * right.cumsum() / (given + right.sum())
    middles = (ranked + np.append(ranked[1:], 0.0)) / 2
    # Between equal scores there is no threshold.
    apart = np.append(ranked[:-1] > ranked[1:], True)
    plain = ranked >= _PLAIN
    found = np.append(f1[apart], 2 * right[plain].sum() / (plain.sum() + right.sum()))
    candidates = np.append(middles[apart], _PLAIN)
    best = candidates[np.isclose(found, found.max())]
    return float(np.clip(best[np.abs(best - _PLAIN).argmin()], _LEAST, 1 - _LEAST))


def lift(thresholds: Sequence[float]) -> list[float]:
    """What is taken off the logits, so that a probability at its threshold becomes 0.5."""
    return [math.log(threshold / (1 - threshold)) for threshold in thresholds]
