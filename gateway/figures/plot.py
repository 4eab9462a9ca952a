"""What plots have in common: scales with round ticks, axes, and the element around them.

Units are those of the drawing, `WIDTH` x `HEIGHT`; a browser scales it to the width that it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

STYLE = (Path(__file__).parent / "figures.css").read_text(encoding="utf-8")
"""Style sheet that pages with plots need."""
WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 22, 36


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values from `low` to `high` onto positions from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The position of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, count: int = 4) -> list[float]:
        """About `count` round values within it."""
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        return [float(f"{number * step:.12g}") for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale(values: Sequence[float], start: float, end: float, *, from_zero: bool = False) -> Scale:
    """A scale for finite values with some room at both ends; at least one value."""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return Scale(0.0 if from_zero and low >= 0 else low - room, high + room, start, end)


def across(values: Sequence[float], *, from_zero: bool = False) -> Scale:
    """A scale along the width."""
    return scale(values, LEFT, WIDTH - RIGHT, from_zero=from_zero)


def upwards(values: Sequence[float], *, from_zero: bool = False) -> Scale:
    """A scale along the height, low values at the bottom."""
    return scale(values, HEIGHT - BOTTOM, TOP, from_zero=from_zero)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)


def label_of(value: float) -> str:
    """A tick's label: `0.25`, `40`, `1,500`, `12k`."""
    if abs(value) >= 10_000:
        return f"{value / 1000:,.4g}k"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def axes(x: Scale, y: Scale, x_label: str, y_label: str) -> Markup:
    """Both axes, with lines at the ticks of y."""
    parts = [
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="tick end" x="{}" y="{}">{}</text>'
        ).format(LEFT, WIDTH - RIGHT, y.at(tick), y.at(tick), LEFT - 6, y.at(tick) + 4, label_of(tick))
        for tick in y.ticks()
    ]
    parts += [
        Markup('<text class="tick middle" x="{}" y="{}">{}</text>').format(
            x.at(tick), HEIGHT - BOTTOM + 15, label_of(tick)
        )
        for tick in x.ticks()
    ]
    parts.append(Markup('<text class="axis end" x="{}" y="{}">{}</text>').format(WIDTH - RIGHT, HEIGHT - 4, x_label))
    parts.append(Markup('<text class="axis" x="0" y="10">{}</text>').format(y_label))
    return Markup("").join(parts)


def points_of(pairs: Sequence[tuple[float, float]]) -> str:
    """Positions as SVG writes them."""
    return " ".join(f"{x:g},{y:g}" for x, y in pairs)


def figure(content: Markup, words: str, height: int = HEIGHT) -> Markup:
    """The drawing; `words` say what it shows."""
    return Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, words, content
    )
