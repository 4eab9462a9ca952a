"""What `make loop` ends with: a table of the story, and a plot of the quality that the customers met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.product.tickets import Kind

_WINDOW_S = 20.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One call as its customer saw it."""

    at: float
    """Seconds since the customers came."""
    kind: Kind
    right: bool | None
    """None when the call failed."""
    model_version: str
    answer: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the mesh, or the story, did."""

    at: float
    """Seconds since the customers came."""
    what: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Quality:
    """Share of right answers in a stretch of time, with a 95 % interval (Wilson's)."""

    begin: float
    end: float
    right: int
    count: int

    @property
    def share(self) -> float:
        """Right answers of all."""
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high."""
        from scipy.stats import binomtest

        found = binomtest(self.right, self.count).proportion_ci(method="wilson")
        return float(found.low), float(found.high)


def quality(asked: Sequence[Asked], begin: float, end: float) -> Quality | None:
    """Of the calls that were answered in a stretch of time; None if there were none."""
    found = [each.right for each in asked if begin <= each.at < end and each.right is not None]
    return Quality(begin, end, sum(found), len(found)) if found else None


def windows(asked: Sequence[Asked]) -> list[Quality]:
    """Stretches of 20 seconds, in order."""
    last = max((each.at for each in asked), default=0.0)
    found = (quality(asked, at * _WINDOW_S, (at + 1) * _WINDOW_S) for at in range(math.ceil(last / _WINDOW_S)))
    return [each for each in found if each is not None]


def plot(file: Path, asked: Sequence[Asked], events: Sequence[Event]) -> None:
    """Writes the plot as a picture: quality over time with its interval, and what the mesh did."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = windows(asked)
    at = [(each.begin + each.end) / 2 / 60 for each in found]
    figure, axes = pyplot.subplots(figsize=(11, 5.5), dpi=130, layout="constrained")
    axes.fill_between(
        at, [each.interval[0] for each in found], [each.interval[1] for each in found], color="#4c78a8", alpha=0.2, lw=0
    )
    axes.plot(at, [each.share for each in found], color="#4c78a8", lw=2, label="right answers, with 95 % interval")
    for number, event in enumerate(events):
        axes.axvline(event.at / 60, color="#888888", lw=0.8, ls=":")
        axes.annotate(
            event.what,
            (event.at / 60, 0.02 + 0.045 * (number % 9)),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=8,
        )
    axes.axhline(0.5, color="#bbbbbb", lw=0.8)
    axes.set(xlabel="minutes", ylabel="share of right answers", ylim=(0.2, 1.0), xlim=(0, max(at, default=1.0)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    pyplot.close(figure)
