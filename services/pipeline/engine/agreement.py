"""How far two people agree: Cohen's kappa (1960), by scikit-learn, with a bootstrap interval over the answers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Agreement:
    """`observed` is a share from 0 to 1; `kappa` with its 95 % interval, None where it is not defined."""

    count: int
    observed: float = 0.0
    kappa: tuple[float, float, float] | None = None


def agreement(pairs: Sequence[tuple[str, str]], *, seed: int = 0) -> Agreement:
    """Agreement of two people by what each decided about the same answers.

    Kappa is not defined below two answers, or where all decisions are the same.
    """
    import numpy as np

    if not pairs:
        return Agreement(0)
    observed = sum(one == other for one, other in pairs) / len(pairs)
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    if len(pairs) < 2 or len({*first, *second}) < 2:
        return Agreement(len(pairs), observed)
    value = _kappa(first, second)
    numbers = {word: number for number, word in enumerate(sorted({*first, *second}))}
    one, other = np.array([numbers[word] for word in first]), np.array([numbers[word] for word in second])
    picks = np.random.default_rng(seed).integers(0, len(pairs), size=(_RESAMPLES, len(pairs)))
    found = [_kappa_of(one[pick], other[pick], len(numbers)) for pick in picks]
    # A resample in which all decisions are the same has no kappa.
    defined = [item for item in found if math.isfinite(item)]
    low, high = np.percentile(defined, [2.5, 97.5]) if defined else (math.nan, math.nan)
    return Agreement(len(pairs), observed, (value, float(low), float(high)))


def _kappa_of(first: NDArray[np.int64], second: NDArray[np.int64], words: int) -> float:
    """Kappa of numbered decisions, for resamples: scikit-learn's checks cost a hundred times as much."""
    import numpy as np

    count = len(first)
    observed = float(np.mean(first == second))
    expected = float(np.bincount(first, minlength=words) @ np.bincount(second, minlength=words)) / count**2
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan


def _kappa(first: Sequence[str], second: Sequence[str]) -> float:
    from sklearn.metrics import cohen_kappa_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(cohen_kappa_score(first, second))
