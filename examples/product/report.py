"""What `make loop` ends with: a table of the story, and a plot of the quality that the customers met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.product.tickets import Kind

DRIFT = "a shop opens"
"""The event after which the world is another one."""

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
    version: str = ""
    """Number of the version that it was about."""


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


def recovery(asked: Sequence[Asked], drift: float) -> float | None:
    """Seconds from the drift until answers were as good as before, over 20 seconds.

    None if they never were, or if none was given before. Before is everything between the first call and the drift, so
    what was learnt until then counts in part.
    """
    before = quality(asked, 0, drift)
    if before is None:
        return None
    for each in windows([call for call in asked if call.at >= drift]):
        if each.begin >= drift and each.share >= before.share:
            return each.end - drift
    return None


_STYLES = {
    DRIFT: ("#222222", "-", "a shop opens"),
    "promote": ("#2a7f3f", "-", "version {} promoted"),
    "rollback": ("#b03a2e", "--", "version {} rolled back"),
    "refused by the gate": ("#b03a2e", ":", "refused by the gate"),
    "teams at random": ("#888888", ":", "trained on teams at random"),
    "hotels only": ("#888888", ":", "trained on hotels only"),
}
"""Colour, line and words of the events that the plot shows."""


def plot(file: Path, asked: Sequence[Asked], events: Sequence[Event]) -> None:
    """Writes the plot as a picture: quality over time with its interval, and what the mesh decided."""
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
    shown = [event for event in events if event.what in _STYLES]
    for number, event in enumerate(shown):
        color, line, words = _STYLES[event.what]
        axes.axvline(event.at / 60, color=color, lw=1.2, ls=line)
        axes.annotate(
            words.format(event.version),
            (event.at / 60, 0.03 + 0.05 * (number % 6)),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=9,
            color=color,
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
        )
    starts = [event.at / 60 for event in events if event.what == "a cycle starts"]
    axes.plot(starts, [0.01] * len(starts), "^", color="#888888", label="a cycle starts by itself")
    axes.set(xlabel="minutes", ylabel="share of right answers", ylim=(0, 1.0), xlim=(0, max(at, default=1.0) + 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    pyplot.close(figure)
