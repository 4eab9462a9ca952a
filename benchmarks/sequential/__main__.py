"""`make bench-sequential`: errors and delay of experiments that are watched all the time.

Simulates users that arrive one by one. Writes its part of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.report import table, write_section
from services.pipeline.engine.group_sequential import boundaries
from services.pipeline.engine.sequential import MIN_UNITS, RateGuard, normal_mixture, ratio_mismatch

_ALPHA, _UNITS, _AT_ONCE = 0.05, 20_000, 100
_FIXED = 4000
"""Units of the usual test that the power is compared with."""
_Z = NormalDist().inv_cdf(1 - _ALPHA)

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Array]

METRICS: Mapping[str, Draw] = {
    "thumbs up, 80 %": lambda rng, shape: (rng.random(shape) < 0.8).astype(float),
    "corrected, 5 %": lambda rng, shape: (rng.random(shape) < 0.05).astype(float),
    "corrected, 1 %": lambda rng, shape: (rng.random(shape) < 0.01).astype(float),
    "retries, Poisson 0.4": lambda rng, shape: rng.poisson(0.4, shape).astype(float),
    "seconds, log-normal (sigma 1)": lambda rng, shape: rng.lognormal(0.0, 1.0, shape),
}
SHARES = (0.5, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=2000, help="simulated for each figure")
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks.md"))
    options = parser.parse_args()
    rng = np.random.default_rng(20261126)
    lines = machine.described(("numpy",))
    lines += [f"- {options.experiments} simulated experiments a figure, alpha {_ALPHA}, {_UNITS:,} users each", ""]
    lines += _false_promotions(rng, options.experiments)
    lines += _power(rng, options.experiments)
    lines += _guards(rng, options.experiments)
    write_section(options.report, "sequential", lines)


def _looks(rng: np.random.Generator, draw: Draw, share: float, effect: float, count: int) -> tuple[Array, Array]:
    """The candidate's mean less the champion's, and its standard error, after each user; infinite before the least."""
    shape = (count, _UNITS)
    treated = rng.random(shape) < share
    values = draw(rng, shape) + effect * treated
    difference, variance = np.zeros(shape), np.zeros(shape)
    enough = np.ones(shape, dtype=bool)
    for arm, sign in ((treated, 1), (~treated, -1)):
        units = np.cumsum(arm, axis=1)
        safe = np.maximum(units, 2)
        mean = np.cumsum(values * arm, axis=1) / safe
        spread = (np.cumsum(values**2 * arm, axis=1) - safe * mean**2) / (safe - 1)
        difference += sign * mean
        variance += np.maximum(spread, 0) / safe
        enough &= units >= MIN_UNITS
    return difference, np.where(enough, np.sqrt(variance), np.inf)


def _batches(total: int) -> list[int]:
    return [min(_AT_ONCE, total - done) for done in range(0, total, _AT_ONCE)]


_WIDTHS = np.array([normal_mixture(units, _ALPHA, 2000.0, one_sided=True) for units in range(1, _UNITS + 1)])


def _false_promotions(rng: np.random.Generator, experiments: int) -> list[str]:
    rows = []
    for name, draw in METRICS.items():
        for share in SHARES:
            ours = peeked = 0
            for count in _batches(experiments):
                difference, error = _looks(rng, draw, share, 0.0, count)
                with np.errstate(invalid="ignore", divide="ignore"):
                    z = np.where(error > 0, difference / error, 0.0)
                ours += int((z > _WIDTHS).any(axis=1).sum())
                peeked += int((z > _Z).any(axis=1).sum())
            rows.append([name, f"{share:.0%}", _percent(ours, experiments), _percent(peeked, experiments)])
    head = ["equal models, metric", "candidate's share", "promoted, ours", "promoted, usual test at every look"]
    return ["Two equal models, looked at after every user; promoted by mistake:", "", *table(head, rows), ""]


def _power(rng: np.random.Generator, experiments: int) -> list[str]:
    rows = []
    looks = [1000, 2000, 3000, _FIXED]
    bounds = boundaries([each / _FIXED for each in looks], _ALPHA)
    for strength, power in (("80 % power", 0.8), ("95 % power", 0.95)):
        draw = METRICS["thumbs up, 80 %"]
        effect = (_Z + NormalDist().inv_cdf(power)) * math.sqrt(0.8 * 0.2 * 4 / _FIXED)
        fixed = grouped = by_fixed = in_the_end = 0
        stops: list[int] = []
        group_stops: list[int] = []
        for count in _batches(experiments):
            difference, error = _looks(rng, draw, 0.5, effect, count)
            z = difference / error
            fixed += int((z[:, _FIXED - 1] > _Z).sum())
            crossed = z > _WIDTHS
            first = np.where(crossed.any(axis=1), crossed.argmax(axis=1) + 1, _UNITS)
            by_fixed += int((first <= _FIXED).sum())
            in_the_end += int(crossed.any(axis=1).sum())
            stops += first.tolist()
            over = np.stack([z[:, at - 1] > bound for at, bound in zip(looks, bounds, strict=True)], axis=1)
            grouped += int(over.any(axis=1).sum())
            group_stops += np.where(over.any(axis=1), np.array(looks)[over.argmax(axis=1)], _FIXED).tolist()
        rows += [
            [strength, "usual test, one look", _percent(fixed, experiments), "", f"{_FIXED}"],
            [strength, "group-sequential, 4 looks", _percent(grouped, experiments), "", f"{np.mean(group_stops):.0f}"],
            [
                strength,
                "ours, every look",
                _percent(by_fixed, experiments),
                _percent(in_the_end, experiments),
                f"{np.mean(stops):.0f}",
            ],
        ]
    head = ["effect", "test", f"found by {_FIXED} users", f"by {_UNITS:,}", "users until the decision, mean"]
    lead = f"A better candidate, by what the usual test finds with {_FIXED} users at the stated power:"
    return [lead, "", *table(head, rows), ""]


def _guards(rng: np.random.Generator, experiments: int) -> list[str]:
    rows = []
    guard = RateGuard(0.05)
    for rate in (0.05, 0.06, 0.1, 0.3, 1.0):
        alarms, answers = 0, []
        for _ in range(experiments):
            hits = np.cumsum(rng.random(2000) < rate)
            found = next((n for n in range(1, 2001) if guard.is_exceeded(int(hits[n - 1]), n, 0.01)), None)
            alarms += found is not None
            answers += [found] if found is not None else []
        median = f"{np.median(answers):.0f}" if answers else ""
        rows.append([f"{rate:.0%}", _percent(alarms, experiments), median])
    lines = ["A guard-rail of 5 % errors at alpha 0.01, asked after each of 2,000 answers:", ""]
    lines += [*table(["true rate", "alarm", "answers until it, median"], rows), ""]
    rows = []
    for share in (0.5, 0.52, 0.55, 0.6):
        found = 0
        for _ in range(experiments):
            ones = np.cumsum(rng.random(5000) < share)
            plan = {"a": 0.5, "b": 0.5}
            found += any(
                ratio_mismatch({"a": int(ones[n - 1]), "b": n - int(ones[n - 1])}, plan) < 0.01
                for n in range(50, 5001, 50)
            )
        rows.append([f"{share:.0%}", _percent(found, experiments)])
    lines += ["Arms planned at 50/50, asked after every 50 of 5,000 users at alpha 0.01:", ""]
    return [*lines, *table(["true share", "mismatch found"], rows), ""]


def _percent(count: int, of: int) -> str:
    return f"{count / of:.1%}"


if __name__ == "__main__":
    main()
