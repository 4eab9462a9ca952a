"""The report of a run: its loss curve, and its JSON form."""

from __future__ import annotations

import json

import pytest

from services.training.domain.report import Metric, Report, loss_curve

_METRIC = Metric("accuracy", 0.5, 0.4, 0.6, 10)


@pytest.mark.parametrize(
    ("steps", "points", "width"), [(0, 0, 1), (1, 1, 1), (200, 200, 1), (201, 101, 2), (5000, 200, 25)]
)
def test_a_loss_curve_has_few_points_which_are_means(steps: int, points: int, width: int) -> None:
    losses = [float(step) for step in range(1, steps + 1)]
    curve = loss_curve(losses)
    assert len(curve) == points
    if curve:
        assert curve[-1].step == steps
        assert (curve[0].step, curve[0].loss) == (width, (width + 1) / 2)


def test_a_report_keeps_its_loss_curve() -> None:
    report = Report(_METRIC, loss_curve=loss_curve([3.0, 2.0]))
    again = Report.from_json(json.loads(json.dumps(report.to_json())))
    assert again.loss_curve == report.loss_curve
    earlier = {name: value for name, value in report.to_json().items() if name != "loss_curve"}
    assert Report.from_json(earlier).loss_curve == ()
