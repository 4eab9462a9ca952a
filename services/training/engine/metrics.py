"""Task metrics with 95 % confidence intervals."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from services.kit.spans import Span
from services.training.domain.report import Comparison, Metric

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

RESAMPLES = 2000
DRAWN_AT_ONCE = 4_000_000
"""Examples that are drawn at once: 32 MB of them."""
Score = Sequence[float]
"""The numbers of one example of which a measure takes the sums."""
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


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric of a set of examples that follows from sums over them, so that any part of the set can be measured.

    `of` takes sums [..., numbers] of the examples' scores and gives the metric [...].
    """

    name: str
    of: Callable[[Array], Array]


def mean_of(name: str) -> Measure:
    """The mean of scores, see `alone`."""
    return Measure(name, lambda sums: sums[..., 0] / sums[..., 1])


def alone(scores: Sequence[float]) -> list[Score]:
    """Scores of which a measure is the mean: each with the number of its examples."""
    return [(score, 1.0) for score in scores]


def f1_of(name: str) -> Measure:
    """The F1 over all things that were found, of `SpanCounts`; 0 where there is nothing to find and nothing found."""
    return Measure(name, lambda sums: _share(2 * sums[..., 0], sums[..., 1] + sums[..., 2]))


def measured(measure: Measure, scores: Sequence[Score], *, seed: int = 0) -> Metric:
    """A metric with its bootstrap percentile interval over examples (Efron 1979), 2,000 resamples.

    Raises:
        ValueError: there are no scores.
    """
    ((value, resampled),) = _resampled(measure, [scores], seed)
    return _interval(measure.name, value, resampled, len(scores))


def mean_with_interval(name: str, scores: Sequence[float], *, seed: int = 0) -> Metric:
    """Mean of per-example scores with its interval, see `measured`."""
    return measured(mean_of(name), alone(scores), seed=seed)


def compared(
    measure: Measure,
    tuned: Sequence[Score],
    base: Sequence[Score] | None,
    champion: Sequence[Score] | None,
    *,
    seed: int = 0,
) -> Comparison:
    """The models by their scores on the same examples, with their differences by a paired bootstrap over examples.

    Args:
        measure: what follows from the scores; the name of a difference ends with `_difference`.
        tuned: one score an example.
        base: likewise, in the same order; None if the base model has no answer.
        champion: likewise; None if there is no champion.
        seed: of the bootstrap.
    """
    models = {name: scores for name, scores in (("base", base), ("champion", champion)) if scores is not None}
    (own, owns), *others = _resampled(measure, [tuned, *models.values()], seed)
    found: dict[str, Metric] = {}
    for name, (value, resampled) in zip(models, others, strict=True):
        found[name] = _interval(measure.name, value, resampled, len(tuned))
        found[f"over_{name}"] = _interval(f"{measure.name}_difference", own - value, owns - resampled, len(tuned))
    return Comparison(_interval(measure.name, own, owns, len(tuned)), **found)


@dataclass(frozen=True, slots=True)
class TextLoss:
    """Cross entropy of one reference answer: nats summed over its tokens."""

    nats: float
    tokens: int


def loss_per_token(losses: Sequence[TextLoss], *, seed: int = 0) -> Metric:
    """Cross entropy per token over all answers, with its bootstrap interval over answers."""
    return measured(mean_of("loss_per_token"), [(item.nats, item.tokens) for item in losses], seed=seed)


def loss_increase(reference: Sequence[TextLoss], losses: Sequence[TextLoss], *, seed: int = 0) -> Metric:
    """Relative increase of the loss over a reference model's, paired by answer."""
    pairs = [(after.nats, before.nats) for after, before in zip(losses, reference, strict=True)]
    return measured(Measure("loss_increase", lambda sums: sums[..., 0] / sums[..., 1] - 1), pairs, seed=seed)


class SpanCounts(NamedTuple):
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
    measures = (
        Measure("entity_precision", lambda sums: _share(sums[..., 0], sums[..., 1])),
        Measure("entity_recall", lambda sums: _share(sums[..., 0], sums[..., 2])),
        f1_of("entity_f1"),
    )
    return {measure.name: measured(measure, counts, seed=seed) for measure in measures}


def label_counts(wanted: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> list[SpanCounts]:
    """The labels of each text: those found that are right, all found, and all that there are."""
    return [
        SpanCounts(len(set(right) & set(given)), len(set(given)), len(set(right)))
        for right, given in zip(wanted, found, strict=True)
    ]


def label_metrics(
    wanted: Sequence[Sequence[str]], found: Sequence[Sequence[str]], *, seed: int = 0
) -> dict[str, Metric]:
    """`micro_f1`, `macro_f1` and `subset_accuracy` of labels assigned to texts, with bootstrap intervals over texts.

    Micro F1 is over all labels of all texts. Macro F1 is the mean of the labels' own, of those that some text has.
    Subset accuracy is the share of texts with exactly their labels (sklearn's `accuracy_score` of indicators).
    """
    import numpy as np

    places = {label: at for at, label in enumerate(sorted({label for labels in wanted for label in labels}))}
    counts = np.zeros((len(wanted), 3, len(places)))
    for row, (right, given) in enumerate(zip(wanted, found, strict=True)):
        for kind, labels in enumerate((set(right) & set(given), set(given), set(right))):
            for label in labels & places.keys():
                counts[row, kind, places[label]] = 1

    def macro(sums: Array) -> Array:
        """[..., 3 * labels] -> [...]."""
        each = sums.reshape(*sums.shape[:-1], 3, len(places))
        means: Array = _share(2 * each[..., 0, :], each[..., 1, :] + each[..., 2, :]).mean(axis=-1)
        return means

    whole = [float(set(right) == set(given)) for right, given in zip(wanted, found, strict=True)]
    return {
        "micro_f1": measured(f1_of("micro_f1"), label_counts(wanted, found), seed=seed),
        "macro_f1": measured(Measure("macro_f1", macro), counts.reshape(len(wanted), -1).tolist(), seed=seed),
        "subset_accuracy": mean_with_interval("subset_accuracy", whole, seed=seed),
    }


def _kappa(sums: Array) -> Array:
    """Of sums of `ordinal_scores`: [..., 6] -> [...]."""
    import numpy as np

    a, b, aa, bb, seen = np.moveaxis(sums[..., 1:] / sums[..., :1], -1, 0)
    # The mean of all pairs' squared distances.
    expected = (aa - a**2) + (bb - b**2) + (a - b) ** 2
    scores: Array = np.where(expected > 0, 1 - seen / np.where(expected > 0, expected, 1), 0.0)
    return scores


QUADRATIC_KAPPA = Measure("quadratic_weighted_kappa", _kappa)
"""Cohen 1968: 1 minus the squared distances between wanted and found labels, over those that would be expected of
independent ones with the same frequencies. Where nothing varies it is 0. Its scores are `ordinal_scores`.
"""


def ordinal_scores(wanted: Sequence[int], found: Sequence[int]) -> list[Score]:
    """Of the places of each text's labels in their order."""
    return [(1.0, a, b, a * a, b * b, (a - b) ** 2) for a, b in zip(wanted, found, strict=True)]


def _share(part: Array, whole: Array) -> Array:
    """Part of a whole of counts; 0 of an empty one."""
    import numpy as np

    shares: Array = part / np.maximum(whole, 1)
    return shares


def _resampled(measure: Measure, models: Sequence[Sequence[Score]], seed: int) -> list[tuple[float, Array]]:
    """The metric of each model, and its values on the resampled examples, which are the same for all models."""
    import numpy as np

    count = len(models[0])
    if not count:
        raise ValueError(f"{measure.name}: no scores to measure")
    tables = [np.asarray(scores, dtype=np.float64) for scores in models]  # [examples, numbers]
    generator = np.random.default_rng(seed)
    parts: list[list[Array]] = [[] for _ in models]
    for rows in blocks(count):
        picks = generator.integers(0, count, size=(rows, count))
        # How often each resample has each example, instead of the examples themselves.
        places = picks + np.arange(rows)[:, None] * count
        times = np.bincount(places.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        for part, table in zip(parts, tables, strict=True):
            part.append(measure.of(times @ table))
    return [
        (float(measure.of(table.sum(axis=0))), np.concatenate(part)) for table, part in zip(tables, parts, strict=True)
    ]


def blocks(count: int) -> list[int]:
    """How many of `RESAMPLES` are drawn at once, each of as many examples as `count`."""
    most = max(1, DRAWN_AT_ONCE // max(1, count))
    return [min(most, RESAMPLES - start) for start in range(0, RESAMPLES, most)]


def _interval(name: str, value: float, resampled: Array, count: int) -> Metric:
    import numpy as np

    low, high = np.percentile(resampled, [2.5, 97.5])
    return Metric(name, value, float(low), float(high), count)
