"""Task metrics with 95 % confidence intervals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.kit.spans import Span
from services.training.domain.report import Comparison, Metric

if TYPE_CHECKING:
    import numpy as np

_RESAMPLES = 2000
_IDEOGRAPHS = "\\u3040-\\u30ff\\u3400-\\u9fff\\uf900-\\ufaff"
_WORDS = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+")


def rouge_l(references: Sequence[str], answers: Sequence[str]) -> list[float]:
    """ROUGE-L F1 of each answer, 0 to 1, with stemming (Lin 2004; Google's rouge-score).

    rouge-score's own words consist of ASCII letters only, so that every Chinese answer would score 0. Here each Han or
    kana character is a word, and so is each run of other letters.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    english = DefaultTokenizer(use_stemmer=True)

    class Words:
        def tokenize(self, text: str) -> list[str]:
            words = _WORDS.findall(text.lower())
            return [stem for word in words for stem in (english.tokenize(word) if word.isascii() else [word])]

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    return [float(scorer.score(r, a)["rougeL"].fmeasure) for r, a in zip(references, answers, strict=True)]


def correct(references: Sequence[str], answers: Sequence[str]) -> list[float]:
    """1.0 if the label is right, else 0.0."""
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
    return _interval(name, float(values.mean()), values[_picks(len(values), seed)].mean(axis=1), len(values))


def compared(
    name: str, tuned: Sequence[float], base: Sequence[float] | None, champion: Sequence[float] | None
) -> Comparison:
    """The models by their scores on the same examples, with the paired differences.

    Args:
        name: of the metric; that of a difference ends with `_difference`.
        tuned: one score an example.
        base: likewise, in the same order; None if the base model has no answer.
        champion: likewise; None if there is no champion.
    """

    def mean(scores: Sequence[float] | None) -> Metric | None:
        return None if scores is None else mean_with_interval(name, scores)

    def gain(others: Sequence[float] | None) -> Metric | None:
        if others is None:
            return None
        return mean_with_interval(f"{name}_difference", [t - o for t, o in zip(tuned, others, strict=True)])

    return Comparison(mean_with_interval(name, tuned), mean(base), mean(champion), gain(base), gain(champion))


@dataclass(frozen=True, slots=True)
class TextLoss:
    """Cross entropy of one reference answer: nats summed over its tokens."""

    nats: float
    tokens: int


def loss_per_token(losses: Sequence[TextLoss], *, seed: int = 0) -> Metric:
    """Cross entropy per token over all answers, with its bootstrap interval over answers."""
    import numpy as np

    nats = np.array([item.nats for item in losses], dtype=np.float64)
    tokens = np.array([item.tokens for item in losses], dtype=np.float64)
    picks = _picks(len(losses), seed)
    resampled = nats[picks].sum(axis=1) / tokens[picks].sum(axis=1)
    return _interval("loss_per_token", float(nats.sum() / tokens.sum()), resampled, len(losses))


def loss_increase(reference: Sequence[TextLoss], losses: Sequence[TextLoss], *, seed: int = 0) -> Metric:
    """Relative increase of the loss over a reference model's, paired by answer."""
    import numpy as np

    before = np.array([item.nats for item in reference], dtype=np.float64)
    after = np.array([item.nats for item in losses], dtype=np.float64)
    picks = _picks(len(before), seed)
    resampled = after[picks].sum(axis=1) / before[picks].sum(axis=1) - 1
    return _interval("loss_increase", float(after.sum() / before.sum() - 1), resampled, len(before))


@dataclass(frozen=True, slots=True)
class SpanCounts:
    """Spans of one text: those found that are right in place and label, all found, and all that there are."""

    right: int
    found: int
    wanted: int


def span_counts(wanted: Sequence[Span], found: Sequence[Span]) -> SpanCounts:
    """Compares whole spans, as CoNLL's evaluation and seqeval do: a part that is right counts for nothing."""
    places = {(span.start, span.end, span.label) for span in wanted}
    return SpanCounts(sum((s.start, s.end, s.label) in places for s in found), len(found), len(wanted))


def span_metrics(counts: Sequence[SpanCounts], *, seed: int = 0) -> dict[str, Metric]:
    """`entity_precision`, `entity_recall` and `entity_f1` over all spans, with bootstrap intervals over texts."""
    return {
        name: _interval(name, value, resampled, len(counts))
        for name, (value, resampled) in _resampled_spans(counts, seed).items()
    }


def spans_compared(tuned: Sequence[SpanCounts], champion: Sequence[SpanCounts] | None, *, seed: int = 0) -> Comparison:
    """The entity F1 of both models on the same texts, with their difference by a paired bootstrap over texts.

    Args:
        tuned: counts of each text.
        champion: likewise, in the same order; None if there is no champion.
        seed: of the bootstrap.
    """
    name = "entity_f1"
    value, resampled = _resampled_spans(tuned, seed)[name]
    own = _interval(name, value, resampled, len(tuned))
    if champion is None:
        return Comparison(own)
    other, others = _resampled_spans(champion, seed)[name]
    over = _interval(f"{name}_difference", value - other, resampled - others, len(tuned))
    return Comparison(own, champion=_interval(name, other, others, len(champion)), over_champion=over)


def _resampled_spans(counts: Sequence[SpanCounts], seed: int) -> dict[str, tuple[float, np.ndarray[Any, Any]]]:
    """Each metric of spans, and its values on the resampled texts; the same seed picks the same texts."""
    import numpy as np

    table = np.array([(each.right, each.found, each.wanted) for each in counts], dtype=np.float64)
    right, found, wanted = table[_picks(len(counts), seed)].sum(axis=1).T
    r, f, w = table.sum(axis=0)
    parts = {"precision": (r, f, right, found), "recall": (r, w, right, wanted)}
    parts["f1"] = (2 * r, f + w, 2 * right, found + wanted)
    return {
        f"entity_{name}": (float(over / max(under, 1)), overs / np.maximum(unders, 1))
        for name, (over, under, overs, unders) in parts.items()
    }


def labels_compared(
    wanted: Sequence[Sequence[str]],
    tuned: Sequence[Sequence[str]],
    champion: Sequence[Sequence[str]] | None,
    *,
    seed: int = 0,
) -> Comparison:
    """The micro F1 of both models' labels of the same texts, with their difference by a paired bootstrap over texts.

    Args:
        wanted: the labels of each text.
        tuned: the labels that a model assigned to each.
        champion: likewise; None if there is no champion.
        seed: of the bootstrap.
    """
    own = label_metrics(wanted, tuned, seed=seed)["micro_f1"]
    if champion is None:
        return Comparison(own)
    (value, resampled), (other, others) = (_resampled_micro(wanted, found, seed) for found in (tuned, champion))
    over = _interval("micro_f1_difference", value - other, resampled - others, len(wanted))
    return Comparison(own, champion=label_metrics(wanted, champion, seed=seed)["micro_f1"], over_champion=over)


def label_metrics(
    wanted: Sequence[Sequence[str]], found: Sequence[Sequence[str]], *, seed: int = 0
) -> dict[str, Metric]:
    """`micro_f1`, `macro_f1` and `subset_accuracy` of labels assigned to texts, with bootstrap intervals over texts.

    Micro F1 is over all labels of all texts. Macro F1 is the mean of the labels' own, of those that some text has.
    Subset accuracy is the share of texts with exactly their labels (sklearn's `accuracy_score` of indicators).
    """
    import numpy as np

    picks = _picks(len(wanted), seed)
    value, resampled = _resampled_micro(wanted, found, seed)
    places = {label: at for at, label in enumerate(sorted({label for labels in wanted for label in labels}))}
    counts = np.zeros((len(wanted), 3, len(places)))
    for row, (right, given) in enumerate(zip(wanted, found, strict=True)):
        for kind, labels in enumerate((set(right) & set(given), set(given), set(right))):
            for label in labels & places.keys():
                counts[row, kind, places[label]] = 1
    # How often each resample has each text, [resamples, texts], instead of the texts themselves.
    times = np.stack([np.bincount(pick, minlength=len(wanted)) for pick in picks]).astype(np.float64)

    def macro(sums: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[..., 3, labels] -> [...]."""
        scores = 2 * sums[..., 0, :] / np.maximum(sums[..., 1, :] + sums[..., 2, :], 1)
        means: np.ndarray[Any, Any] = scores.mean(axis=-1)
        return means

    sums = (times @ counts.reshape(len(wanted), -1)).reshape(len(times), *counts.shape[1:])
    whole = [float(set(right) == set(given)) for right, given in zip(wanted, found, strict=True)]
    return {
        "micro_f1": _interval("micro_f1", value, resampled, len(wanted)),
        "macro_f1": _interval("macro_f1", float(macro(counts.sum(axis=0))), macro(sums), len(wanted)),
        "subset_accuracy": mean_with_interval("subset_accuracy", whole, seed=seed),
    }


def _resampled_micro(
    wanted: Sequence[Sequence[str]], found: Sequence[Sequence[str]], seed: int
) -> tuple[float, np.ndarray[Any, Any]]:
    counts = [
        SpanCounts(len(set(right) & set(given)), len(set(given)), len(set(right)))
        for right, given in zip(wanted, found, strict=True)
    ]
    return _resampled_spans(counts, seed)["entity_f1"]


def ordinal_compared(
    wanted: Sequence[int], tuned: Sequence[int], champion: Sequence[int] | None, *, seed: int = 0
) -> Comparison:
    """The quadratic weighted kappa of both models on the same texts, with their difference by a paired bootstrap.

    Cohen 1968: 1 minus the squared distances between wanted and found labels, over those that would be expected of
    independent ones with the same frequencies. Where nothing varies it is 0.

    Args:
        wanted: place of each text's label in their order.
        tuned: that of the label that a model gave.
        champion: likewise; None if there is no champion.
        seed: of the bootstrap.
    """
    name = "quadratic_weighted_kappa"
    value, resampled = _resampled_kappa(wanted, tuned, seed)
    own = _interval(name, value, resampled, len(wanted))
    if champion is None:
        return Comparison(own)
    other, others = _resampled_kappa(wanted, champion, seed)
    over = _interval(f"{name}_difference", value - other, resampled - others, len(wanted))
    return Comparison(own, champion=_interval(name, other, others, len(wanted)), over_champion=over)


def _resampled_kappa(wanted: Sequence[int], found: Sequence[int], seed: int) -> tuple[float, np.ndarray[Any, Any]]:
    import numpy as np

    right, given = (np.asarray(values, dtype=np.float64) for values in (wanted, found))

    def kappa(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[..., texts] -> [...]."""
        seen = np.square(a - b).mean(axis=-1)
        # The mean of all pairs' squared distances.
        expected = a.var(axis=-1) + b.var(axis=-1) + np.square(a.mean(axis=-1) - b.mean(axis=-1))
        scores: np.ndarray[Any, Any] = np.where(expected > 0, 1 - seen / np.where(expected > 0, expected, 1), 0.0)
        return scores

    picks = _picks(len(right), seed)
    return float(kappa(right, given)), kappa(right[picks], given[picks])


def _picks(count: int, seed: int) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.random.default_rng(seed).integers(0, count, size=(_RESAMPLES, count))


def _interval(name: str, value: float, resampled: np.ndarray[Any, Any], count: int) -> Metric:
    import numpy as np

    low, high = np.percentile(resampled, [2.5, 97.5])
    return Metric(name, value, float(low), float(high), count)
