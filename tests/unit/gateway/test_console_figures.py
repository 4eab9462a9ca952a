"""Plots of the console: they are well-formed, inside their frame, and survive what services may send."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from gateway.figures.lines import Estimate, confidence_sequence, loss_curve
from gateway.figures.marks import BuildMark, Interval, front, intervals
from gateway.figures.plot import WIDTH, Scale, label_of
from tests.unit.gateway.console_pages import HOSTILE


def drawn(plot: Markup) -> ElementTree.Element:
    """The drawing; everything in it lies within its frame."""
    root = ElementTree.fromstring(str(plot))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ("x1", "x2", "cx", "x"):
                assert 0 <= float(value) <= width, (name, value)
            if name in ("y1", "y2", "cy", "y"):
                assert 0 <= float(value) <= height, (name, value)
            if name == "points":
                for point in value.split():
                    x, y = map(float, point.split(","))
                    assert 0 <= x <= width, point
                    assert 0 <= y <= height, point
    return root


def test_a_loss_curve_is_thinned_and_keeps_its_ends() -> None:
    root = drawn(loss_curve([(step, 3.0 - step / 1000) for step in range(1, 2001)]))
    points = root.findall("polyline")[0].attrib["points"].split()
    assert 200 < len(points) <= 301
    assert root.attrib["aria-label"] == "Loss from 3 at the first to 1 at the last step"


def test_an_interval_has_a_row_with_its_label() -> None:
    root = drawn(intervals([Interval(HOSTILE, 0.2, 0.1, 0.3, "good"), Interval("base", 0.1, 0.05, 0.15)]))
    assert [label.text for label in root.findall("text[@class='label']")] == [HOSTILE, "base"]
    assert len(root.findall(".//circle")) == 2


def test_differences_are_drawn_beside_zero() -> None:
    root = drawn(intervals([Interval("gain", 0.2, 0.1, 0.3)], zero=True))
    assert len(root.findall("line[@class='zero']")) == 1


def test_larger_builds_are_larger_marks() -> None:
    marks = [BuildMark("fp32", 38.0, 0.22, 541_000_000, "good"), BuildMark("int4", 128.0, 0.16, 112_000_000, "bad")]
    root = drawn(front(marks, "tokens a second", "ROUGE-L"))
    radii = {group.find("text").text: float(group.find("circle").attrib["r"]) for group in root.findall("g")}  # type: ignore[union-attr]
    assert radii["fp32"] > 2 * radii["int4"] > 0


def test_a_confidence_sequence_contains_its_estimate() -> None:
    root = drawn(confidence_sequence([Estimate(n, 0.1, 0.1 - 1 / n, 0.1 + 1 / n) for n in range(1, 30)], "hours"))
    assert len(root.findall("polygon")) == 1
    assert root.attrib["aria-label"].startswith("Advantage +0.100, between +0.066")


@pytest.mark.parametrize(
    "draw",
    [
        lambda value: loss_curve([(1, value), (2, value)]),
        lambda value: intervals([Interval("a", value, value, value)]),
        lambda value: front([BuildMark("a", value, value, 0, "")], "speed", "quality"),
        lambda value: confidence_sequence([Estimate(value, value, value, value)], "hours"),
    ],
)
@pytest.mark.parametrize("value", [0.0, -1.0, 1e-12, 1e12, math.nan, math.inf])
def test_odd_numbers_are_drawn_or_left_out(draw: Callable[[float], Markup], value: float) -> None:
    plot = draw(value)
    if math.isfinite(value):
        assert "nan" not in plot
        drawn(plot)
    else:
        assert plot == ""


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.161, 0.223), (-3.0, 12_000.0), (1.99, 2.01)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, WIDTH).ticks()
    assert 2 <= len(ticks) <= 6
    assert all(low <= tick <= high for tick in ticks)
    assert len({label_of(tick) for tick in ticks}) == len(ticks)
    assert all(re.fullmatch(r"-?[0-9.,]+k?", label_of(tick)) for tick in ticks)
