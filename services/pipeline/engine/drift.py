"""Two-sample tests for drift: whether what is asked, answered or said now is what it was.

Each test gives a p-value that is valid for one look, where the members of both samples are exchangeable. `level` splits
a chance of false alarms over all looks of 30 days, so it holds however often one looks.

Texts are compared by the maximum mean discrepancy of their weighted words (Gretton et al., A Kernel Two-Sample Test,
2012) with a p-value by permutation, labels by the chi-squared test, lengths by Kolmogorov and Smirnov's, ratings by
Mann and Whitney's.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PERIOD_HOURS = 30 * 24.0
"""Chances of false alarms are over this many hours."""
MAX_REFERENCE, MAX_LIVE = 1000, 500
"""Members of the samples; more would find differences too small to matter."""

_MAX_CHARACTERS = 2000
_FEATURES = 1 << 16
_MIN_EXPECTED = 5.0
# Figures differ between texts of one kind.
_DIGITS, _SPACE = re.compile(r"\d+"), re.compile(r"\s+")
# A sign of a script that is written without spaces is a word.
_ALONE = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORDS = rf"[{_ALONE}]|[^\W{_ALONE}]+"
_AT_ONCE = 500
_ENOUGH = 10


@dataclass(frozen=True, slots=True)
class Shift:
    """A test's result.

    `before` and `now` describe both samples in the unit of the signal: for texts 1 and how much those of now resemble
    the others, measured by how much these resemble each other; for labels 0 and the share of answers that moved to
    other labels (total variation); for lengths the medians; for ratings the means.
    """

    p_value: float
    before: float
    now: float
    reference_count: int
    live_count: int


def level(false_alarm: float, every_hours: float, signals: int) -> float:
    """The p-value below which one look at one signal is an alarm.

    Looks are `every_hours` apart at least, so 30 days hold `floor(720 / every_hours) + 1` of each signal at most. By
    the union bound the chance of any false alarm in them is at most `false_alarm`, whatever the looks have in common.
    """
    return false_alarm / (signals * (math.floor(PERIOD_HOURS / every_hours) + 1))


def text_shift(reference: Sequence[str], live: Sequence[str], alarm: float, seed: int) -> Shift:
    """Compares texts. Where fewer than two of a sample differ from the other there is no drift.

    Args:
        reference: texts to compare with.
        live: texts now. A repeat counts once, and a text that is in both says nothing and is left out.
        alarm: the level of the look; p-values are computed as exactly as it needs.
        seed: of what is drawn, so that a repeat gives the same figures.
    """
    rng = np.random.default_rng(seed)
    drawn = [
        {_plain(sample[index]) for index in rng.permutation(len(sample))[:most]}
        for sample, most in ((reference, MAX_REFERENCE), (live, MAX_LIVE))
    ]
    known, new = sorted(drawn[0] - drawn[1]), sorted(drawn[1] - drawn[0])
    if min(len(known), len(new)) < 2:
        return Shift(1.0, 1.0, 1.0, len(known), len(new))
    return counts_shift(word_counts(known), word_counts(new), alarm, rng)


def word_counts(texts: Sequence[str]) -> Any:
    """Counts of hashed words, a sparse matrix of a row for each text; for any language."""
    from sklearn.feature_extraction.text import HashingVectorizer

    found = HashingVectorizer(token_pattern=_WORDS, n_features=_FEATURES, alternate_sign=False, norm=None)
    return found.transform([text[:_MAX_CHARACTERS] for text in texts])


def counts_shift(reference: Any, live: Any, alarm: float, rng: np.random.Generator) -> Shift:
    """Compares texts by their counts of words, see `text_shift`; each has two rows at least."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfTransformer

    # The weights follow from both samples together, so they are the same however members are exchanged.
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(sparse.vstack([reference, live]))
    similarity = np.asarray((weighted @ weighted.T).todense(), dtype=np.float32)
    np.fill_diagonal(similarity, 0)
    known, new = reference.shape[0], live.shape[0]
    split = np.repeat(np.array([-1 / known, 1 / new], dtype=np.float32), [known, new])
    within = similarity[:known, :known].sum() / (known * (known - 1))
    across = similarity[:known, known:].mean()
    return Shift(
        _by_permutation(similarity, split, math.ceil(4 / alarm), rng),
        1.0,
        float(across / within) if within > 0 else 1.0,
        known,
        new,
    )


def _by_permutation(similarity: Any, split: Any, most: int, rng: np.random.Generator) -> float:
    """The p-value: the share of permutations with a difference at least as large. Stops early if it is clearly high.

    Source: Besag and Clifford, Sequential Monte Carlo p-values, 1991.
    """
    found = float(split @ similarity @ split)
    # Equal sums in another order differ in their last digits.
    found -= 1e-6 * abs(found)
    done = as_far = 0
    while done < most:
        exchanged = rng.permuted(np.tile(split, (_AT_ONCE, 1)), axis=1)
        as_far += int(np.count_nonzero(((exchanged @ similarity) * exchanged).sum(axis=1) >= found))
        done += _AT_ONCE
        if as_far >= _ENOUGH:
            break
    return (as_far + 1) / (done + 1)


def label_shift(reference: Sequence[str], live: Sequence[str]) -> Shift:
    """Compares labels; rare ones are one."""
    from scipy import stats

    before, now = Counter(reference), Counter(live)
    share = min(len(reference), len(live)) / (len(reference) + len(live))
    common = [label for label in sorted(before | now) if (before[label] + now[label]) * share >= _MIN_EXPECTED]
    rows = [[each[label] for label in common] for each in (before, now)]
    for row, each in zip(rows, (before, now), strict=True):
        row.append(each.total() - sum(row))
    table = np.array(rows)
    table = table[:, table.sum(axis=0) > 0]
    shares = table / table.sum(axis=1, keepdims=True)
    moved = float(np.abs(shares[0] - shares[1]).sum() / 2)
    p_value = 1.0 if table.shape[1] < 2 else float(stats.chi2_contingency(table, correction=False).pvalue)
    return Shift(p_value, 0.0, moved, len(reference), len(live))


def length_shift(reference: Sequence[int], live: Sequence[int]) -> Shift:
    """Compares lengths of texts."""
    from scipy import stats

    found = stats.ks_2samp(reference, live)
    return Shift(float(found.pvalue), float(np.median(reference)), float(np.median(live)), len(reference), len(live))


def rating_shift(reference: Sequence[float], live: Sequence[float]) -> Shift:
    """Compares ratings; better ones are not drift."""
    from scipy import stats

    found = stats.mannwhitneyu(live, reference, alternative="less", method="asymptotic")
    p_value = 1.0 if np.isnan(found.pvalue) else float(found.pvalue)
    return Shift(p_value, float(np.mean(reference)), float(np.mean(live)), len(reference), len(live))


def _plain(text: str) -> str:
    return _SPACE.sub(" ", _DIGITS.sub("0", text.casefold())).strip()
