"""What the report of a run says, as figures and rows: in a card, and on the pages of runs, versions and cycles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from tidemill.common.v1.failure_pb2 import Metric
from tidemill.training.v1.run_pb2 import Comparison, LossPoint, Report, Slice

from gateway.figures.lines import loss_curve
from gateway.figures.marks import Interval, intervals
from gateway.formats import SLICE_LEVEL, Status, slice_name


def report_facts(report: Report, losses: Sequence[LossPoint] = ()) -> dict[str, Any]:
    """What `report.html` shows; `losses` are those of a run that has no report yet."""
    return {
        "quality": quality_plot(report),
        "corrections": corrections_plot(report.corrections) if report.HasField("corrections") else "",
        "loss": loss_curve([(point.step, point.loss) for point in report.loss_curve or losses]),
        "gains": gains(report),
        "slices": slice_rows(report),
    }


def quality_plot(report: Report) -> Markup:
    """Base, champion and candidate on the hold-out."""
    return intervals(_rows((("base", report.base), ("champion", report.champion), ("candidate", report.tuned))))


def corrections_plot(found: Comparison) -> Markup:
    """The same on feedback that was held back."""
    return intervals(_rows((("base", found.base), ("champion", found.champion), ("candidate", found.tuned))))


def _rows(metrics: Sequence[tuple[str, Metric]]) -> list[Interval]:
    return [
        Interval(label, metric.value, metric.ci_low, metric.ci_high, "good" if label == "candidate" else "idle")
        for label, metric in metrics
        if metric.sample_size
    ]


@dataclass(frozen=True, slots=True)
class Gain:
    """A difference of quality, and whether its interval leaves out zero."""

    words: str
    metric: Metric
    status: Status


def gains(report: Report) -> list[Gain]:
    """What the candidate gained."""
    found = []
    if report.HasField("difference"):
        found.append(_gain("over the base model", report.difference))
    if report.HasField("over_champion"):
        found.append(_gain("over the champion", report.over_champion))
    if report.corrections.over_base.sample_size:
        found.append(_gain("over the base model, on corrections", report.corrections.over_base))
    if report.corrections.over_champion.sample_size:
        found.append(_gain("over the champion, on corrections", report.corrections.over_champion))
    return found


def _gain(words: str, metric: Metric) -> Gain:
    if metric.ci_low > 0:
        return Gain(words, metric, Status("better", "good"))
    return Gain(words, metric, Status("worse", "bad") if metric.ci_high < 0 else Status("not certain", "warn"))


@dataclass(frozen=True, slots=True)
class SliceRow:
    """The models on a part of the hold-out; `gain` is None where there are too few records, or no other model."""

    name: str
    examples: int
    comparison: Comparison | None
    gain: Gain | None


def slice_rows(report: Report) -> list[SliceRow]:
    """The slices of a report; the difference is that to the champion, or to the base model without one."""
    return [
        SliceRow(
            slice_name(each),
            each.examples,
            each.comparison if each.HasField("comparison") else None,
            _slice_gain(each),
        )
        for each in report.slices
    ]


def _slice_gain(found: Slice) -> Gain | None:
    over, base = found.comparison.over_champion, found.comparison.over_base
    if over.sample_size:
        worse = found.HasField("p_worse") and found.p_worse <= SLICE_LEVEL
        status = Status("worse", "bad") if worse else Status("not certain" if over.value < 0 else "not worse", "idle")
        return Gain("over the champion", over, status)
    return _gain("over the base model", base) if base.sample_size else None
