"""Figures of few marks: intervals beside each other, and builds by speed, quality and size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from gateway.figures.plot import RIGHT, WIDTH, Scale, across, axes, figure, label_of, scale, upwards

_ROW = 30
_LABEL = 92
_MAX_RADIUS = 17.0


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured figure with both ends of its interval; `tone` colours it."""

    label: str
    value: float
    low: float
    high: float
    tone: str = ""


def intervals(rows: Sequence[Interval], *, zero: bool = False) -> Markup:
    """A row for each, on one scale; empty without one.

    Args:
        rows: from top to bottom.
        zero: whether the scale has to contain zero, with a line there: for differences.
    """
    kept = [row for row in rows if all(map(math.isfinite, (row.value, row.low, row.high)))]
    if not kept:
        return Markup("")
    values = [value for row in kept for value in (row.low, row.high, row.value)] + ([0.0] if zero else [])
    x = scale(values, _LABEL, WIDTH - RIGHT)
    height = _ROW * len(kept) + 30
    parts = [_tick_line(x, tick, height) for tick in x.ticks(5)]
    if zero:
        parts.append(Markup('<line class="zero" x1="{0}" x2="{0}" y1="4" y2="{1}"/>').format(x.at(0.0), height - 22))
    parts += [_interval_row(x, row, 4 + _ROW * at + _ROW / 2) for at, row in enumerate(kept)]
    words = "; ".join(f"{row.label} {row.value:.3f}, from {row.low:.3f} to {row.high:.3f}" for row in kept)
    return figure(Markup("").join(parts), words, height)


def _tick_line(x: Scale, tick: float, height: float) -> Markup:
    return Markup(
        '<line class="grid" x1="{0}" x2="{0}" y1="4" y2="{1}"/><text class="tick middle" x="{0}" y="{2}">{3}</text>'
    ).format(x.at(tick), height - 22, height - 7, label_of(tick))


def _interval_row(x: Scale, row: Interval, y: float) -> Markup:
    return Markup(
        '<text class="label" x="0" y="{1}">{2}</text><g class="mark-row {3}">'
        '<line class="whisker" x1="{4}" x2="{5}" y1="{0}" y2="{0}"/><circle class="dot" cx="{6}" cy="{0}" r="4.5"/></g>'
    ).format(y, y + 4, row.label, row.tone, x.at(row.low), x.at(row.high), x.at(row.value))


@dataclass(frozen=True, slots=True)
class BuildMark:
    """One build; `tone` says what the gate found."""

    label: str
    speed: float
    """Tokens or texts a second."""
    quality: float
    size_bytes: int
    tone: str


def front(builds: Sequence[BuildMark], speed_label: str, quality_label: str) -> Markup:
    """Builds by speed and quality, each as large as its files; empty without one."""
    kept = [each for each in builds if math.isfinite(each.speed) and math.isfinite(each.quality)]
    if not kept:
        return Markup("")
    x = across([each.speed for each in kept], from_zero=True)
    y = upwards([each.quality for each in kept])
    largest = max(each.size_bytes for each in kept) or 1
    parts = [axes(x, y, speed_label, quality_label)]
    for each in sorted(kept, key=lambda build: -build.size_bytes):
        radius = max(3.5, _MAX_RADIUS * math.sqrt(each.size_bytes / largest))
        cx, cy = x.at(each.speed), y.at(each.quality)
        beside = cx + radius + 4
        place, side = (beside, "") if beside < WIDTH - RIGHT - 30 else (cx - radius - 4, " end")
        parts.append(
            Markup(
                '<g class="mark-row {}"><circle class="bubble" cx="{}" cy="{}" r="{}"/>'
                '<text class="label{}" x="{}" y="{}">{}</text></g>'
            ).format(each.tone, cx, cy, round(radius, 1), side, round(place, 1), cy + 4, each.label)
        )
    words = "; ".join(f"{each.label}: quality {each.quality:.3f}, {each.speed:.3g} a second" for each in kept)
    return figure(Markup("").join(parts), words)


def share_bar(share: float, tone: str) -> Markup:
    """A bar for a share of a whole, 0 to 1; the number stands beside it."""
    width = round(WIDTH * min(1.0, max(0.0, share)), 2)
    return Markup(
        '<svg class="bar {}" viewBox="0 0 {} 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect x="0" y="0" width="{}" height="10"/></svg>'
    ).format(tone, WIDTH, width)


def span_bar(offset: float, length: float, tone: str) -> Markup:
    """When something happened within a whole, both as shares of it; at least a visible line."""
    start = min(max(0.0, offset), 1.0) * (WIDTH - 3)
    width = max(3.0, min(length, 1.0) * (WIDTH - start))
    return Markup(
        '<svg class="bar {}" viewBox="0 0 {} 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect x="{}" y="0" width="{}" height="10"/></svg>'
    ).format(tone, WIDTH, round(start, 2), round(min(width, WIDTH - start), 2))
