"""Task metrics with 95 % confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from services.training.domain.report import Metric

if TYPE_CHECKING:
    import numpy as np

_RESAMPLES = 2000


def rouge_l(references: Sequence[str], answers: Sequence[str]) -> list[float]:
    """ROUGE-L F1 of each answer, 0 to 1, with stemming (Lin 2004; Google's rouge-score)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [float(scorer.score(r, a)["rougeL"].fmeasure) for r, a in zip(references, answers, strict=True)]


def correct(references: Sequence[str], answers: Sequence[str]) -> list[float]:
    """1.0 where the label is right, else 0.0."""
    return [float(r == a) for r, a in zip(references, answers, strict=True)]


def mean_with_interval(name: str, scores: Sequence[float], *, seed: int = 0) -> Metric:
    """Mean of per-example scores with its bootstrap percentile interval (Efron 1979), 2,000 resamples.

    Raises:
        ValueError: there are no scores.
    """
    import numpy as np

    if not scores:
        raise ValueError(f"{name}: no scores to average")
    values: np.ndarray[Any, Any] = np.asarray(scores, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return Metric(name, float(values.mean()), float(low), float(high), len(values))
