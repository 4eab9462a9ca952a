"""Evaluation by slices: parts of the hold-out by source, length, language or another attribute, each measured alone.

A model that is better on the whole may be worse for the few. What is measured is the task's own measure, so that all
tasks are sliced in one way; see docs/adr/0068-slices.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.training.domain.report import Slice
from services.training.domain.training_spec import LENGTH
from services.training.engine.metrics import RESAMPLES, Measure, Score, blocks, compared

USUAL = ("source", LENGTH, "language")
"""What slices are made by where nothing is named."""
_SLICES = 8
_BANDS = 4
_SHOWN = 64
# Permuted statistics that are equal differ in their last bits.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Cut:
    """A slice before it is measured: the places of its rows; `pooled_values` as in `Slice`."""

    attribute: str
    value: str
    places: tuple[int, ...]
    pooled_values: int = 0


def cuts(rows: Sequence[Mapping[str, str]], attribute: str, min_examples: int) -> list[Cut]:
    """The slices by one attribute, at most 8: each row is in one of them.

    Values of fewer than `min_examples` rows, and those beyond the largest, are pooled in the last slice. Lengths are up
    to four bands between quantiles. Empty where the only slice would be the whole.
    """
    found = _bands(rows, min_examples) if attribute == LENGTH else _values(rows, attribute, min_examples)
    return found if len(found) > 1 else []


def _values(rows: Sequence[Mapping[str, str]], attribute: str, min_examples: int) -> list[Cut]:
    places: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        places.setdefault(row.get(attribute, ""), []).append(at)
    order = sorted(places, key=lambda value: (-len(places[value]), value))
    large = [value for value in order if len(places[value]) >= min_examples]
    # All of them, unless something is left to pool.
    own = large if len(large) == len(order) <= _SLICES else large[: _SLICES - 1]
    found = [Cut(attribute, value[:_SHOWN], tuple(places[value])) for value in own]
    pooled = order[len(own) :] if own else []
    if pooled:
        rest = sorted(at for value in pooled for at in places[value])
        found.append(Cut(attribute, "", tuple(rest), len(pooled)))
    return found


def _bands(rows: Sequence[Mapping[str, str]], min_examples: int) -> list[Cut]:
    lengths = [len(row["text"]) for row in rows]
    order, bands = sorted(lengths), min(_BANDS, len(rows) // max(1, min_examples))
    # Texts of equal length are in one band.
    begins = sorted({order[len(order) * band // bands] for band in range(bands)}) if bands else []
    which = [sum(begin <= length for begin in begins) for length in lengths]
    found = []
    for band in sorted(Counter(which)):
        places = tuple(at for at, own in enumerate(which) if own == band)
        inside = [lengths[at] for at in places]
        found.append(Cut(LENGTH, f"{min(inside)}-{max(inside)} characters", places))
    return found


def sliced(
    measure: Measure,
    slices: Sequence[Cut],
    min_examples: int,
    tuned: Sequence[Score],
    base: Sequence[Score] | None,
    champion: Sequence[Score] | None,
) -> tuple[Slice, ...]:
    """The models on each slice; one of fewer than `min_examples` is counted and not measured.

    Args:
        measure: of the task.
        slices: whose places are those of the scores.
        min_examples: see above.
        tuned: one score an example of the whole.
        base: likewise; None if the base model has no answer.
        champion: likewise; None if there is no champion.
    """
    large = [each.places for each in slices if len(each.places) >= min_examples]
    chances = iter([] if champion is None else chances_of_worse(measure, tuned, champion, large))

    def part(scores: Sequence[Score] | None, each: Cut) -> list[Score] | None:
        return None if scores is None else [scores[at] for at in each.places]

    found = []
    for each in slices:
        named = each.attribute, each.value, len(each.places), each.pooled_values
        if len(each.places) < min_examples:
            found.append(Slice(*named))
            continue
        own = part(tuned, each)
        assert own is not None
        comparison = compared(measure, own, part(base, each), part(champion, each))
        found.append(Slice(*named, comparison, next(chances, None)))
    return tuple(found)


def chances_of_worse(
    measure: Measure, tuned: Sequence[Score], champion: Sequence[Score], slices: Sequence[Sequence[int]], seed: int = 0
) -> list[float]:
    """How likely chance makes any slice look as much worse than the champion as each does, if neither model is better.

    A paired randomization test (Noreen 1989; Yeh 2000 for F1): in each of 2,000 draws, about half of the examples have
    the two models' answers exchanged. The p values are adjusted for the number of slices, and for what they share, by
    the smallest standardized difference of all slices in each draw (Westfall and Young 1993, single-step max T). If
    the models are exchangeable, the chance that any of them is at most p is at most p, on hold-outs of every size.

    Args:
        measure: of the task.
        tuned: one score an example.
        champion: likewise.
        slices: places of the examples of each slice.
        seed: of the draws.

    Returns:
        The adjusted, one-sided p value of each slice.
    """
    import numpy as np

    if not slices:
        return []
    own, other = (np.asarray(scores, dtype=np.float64) for scores in (tuned, champion))  # [examples, numbers]
    member = np.zeros((len(own), len(slices)))
    for at, places in enumerate(slices):
        member[list(places), at] = 1
    own_sums, other_sums = member.T @ own, member.T @ other  # [slices, numbers]
    # An exchange of equal answers changes nothing.
    differ = np.flatnonzero((own != other).any(axis=1))
    changes = member[differ, :, None] * (other - own)[differ, None, :]  # [differing, slices, numbers]
    generator = np.random.default_rng(seed)
    draws = [measure.of(own_sums) - measure.of(other_sums)]
    for rows in blocks(len(differ)):
        exchanged = generator.integers(0, 2, size=(rows, len(differ))).astype(np.float64)
        moved = (exchanged @ changes.reshape(len(differ), own_sums.size)).reshape(rows, *own_sums.shape)
        draws.extend(measure.of(own_sums + moved) - measure.of(other_sums - moved))
    differences = np.stack(draws)  # [1 + draws, slices]; the first is what was found
    spread = np.sqrt(np.square(differences).mean(axis=0))
    standardized = differences / np.where(spread > 0, spread, 1)
    smallest = standardized.min(axis=1)
    return [float(np.count_nonzero(smallest <= found + _ROUNDING) / (1 + RESAMPLES)) for found in standardized[0]]
