"""Figures over time: the loss of a training, the estimate of an experiment with its confidence sequence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from gateway.figures.plot import LEFT, RIGHT, WIDTH, across, axes, figure, points_of, upwards

_MAX_POINTS = 300
"""More would fall on the same pixels at the width of a plot."""


def loss_curve(points: Sequence[tuple[float, float]]) -> Markup:
    """Loss by step: each step thin, their running mean above; empty without two points.

    Args:
        points: step and loss, in order of the steps.
    """
    kept = _thinned([(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)])
    if len(kept) < 2:
        return Markup("")
    x, y = across([step for step, _ in kept]), upwards([loss for _, loss in kept])
    line = points_of([(x.at(step), y.at(loss)) for step, loss in kept])
    mean = points_of([(x.at(step), y.at(loss)) for step, loss in _smoothed(kept)])
    drawn = axes(x, y, "step", "loss") + Markup(
        '<polyline class="thin" points="{}"/><polyline class="strong" points="{}"/>'
    ).format(line, mean)
    return figure(drawn, f"Loss from {kept[0][1]:.3g} at the first to {kept[-1][1]:.3g} at the last step")


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate with its interval, at some time."""

    at: float
    value: float
    low: float
    high: float


def confidence_sequence(estimates: Sequence[Estimate], x_label: str) -> Markup:
    """Estimates with their intervals; the line at zero is where both versions are equal. Empty without an estimate."""
    kept = [each for each in estimates if all(map(math.isfinite, (each.at, each.value, each.low, each.high)))]
    if not kept:
        return Markup("")
    x = across([each.at for each in kept])
    y = upwards([0.0, *(each.low for each in kept), *(each.high for each in kept)])
    band = [(x.at(each.at), y.at(each.high)) for each in kept] + [
        (x.at(each.at), y.at(each.low)) for each in kept[::-1]
    ]
    zero = y.at(0.0)
    drawn = axes(x, y, x_label, "advantage") + Markup(
        '<line class="zero" x1="{}" x2="{}" y1="{}" y2="{}"/><polygon class="band" points="{}"/>'
        '<polyline class="strong" points="{}"/>'
    ).format(
        LEFT,
        WIDTH - RIGHT,
        zero,
        zero,
        points_of(band),
        points_of([(x.at(each.at), y.at(each.value)) for each in kept]),
    )
    newest = kept[-1]
    words = f"Advantage {newest.value:+.3f}, between {newest.low:+.3f} and {newest.high:+.3f}"
    return figure(drawn, words)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    every = math.ceil(len(points) / _MAX_POINTS)
    kept = points[::every] if every > 1 else points
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def _smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each with the mean of those around it."""
    reach = max(1, len(points) // 20)
    smoothed = []
    for at, (step, _) in enumerate(points):
        near = points[max(0, at - reach) : at + reach + 1]
        smoothed.append((step, sum(loss for _, loss in near) / len(near)))
    return smoothed
