from __future__ import annotations

import pytest

from services.pipeline.domain.gate import Gate, Preference, judge, measured
from tests.unit.pipeline.peers import report


def chosen(gate: Gate, preference: Preference = Preference.FASTEST, **qualities: float) -> str | None:
    verdicts = judge(gate, preference, measured(report(**qualities)))
    return next((verdict.precision for verdict in verdicts if verdict.chosen), None)


def test_the_fastest_build_that_passes_is_chosen() -> None:
    assert chosen(Gate(0.05), fp32=0.2, int8=0.198, int4=0.15) == "int8"


@pytest.mark.parametrize(
    ("preference", "expected"),
    [(Preference.FASTEST, "int4"), (Preference.SMALLEST, "int4"), (Preference.BEST_QUALITY, "fp32")],
)
def test_preference_chooses_among_those_that_pass(preference: Preference, expected: str) -> None:
    assert chosen(Gate(0.05), preference, fp32=0.2, int8=0.198, int4=0.195) == expected


def test_a_loss_at_the_limit_passes_and_one_above_it_fails() -> None:
    verdicts = judge(Gate(0.05), Preference.FASTEST, measured(report(int8=0.19, int4=0.1899)))
    assert [verdict.passed for verdict in verdicts] == [True, False]
    assert verdicts[1].quality_loss == pytest.approx(0.0505)
    assert "below the tuned model's" in verdicts[1].why


def test_no_build_passes_where_the_tuned_model_gained_too_little() -> None:
    verdicts = judge(Gate(0.05, 0.2), Preference.FASTEST, measured(report(base=0.19, tuned=0.2, fp32=0.2)))
    assert not any(verdict.passed or verdict.chosen for verdict in verdicts)
    assert "wanted +20%" in verdicts[0].why


def test_no_build_of_a_model_below_the_least_quality_passes() -> None:
    verdicts = judge(Gate(0.05, min_quality=0.3), Preference.FASTEST, measured(report(tuned=0.2, fp32=0.4)))
    assert not any(verdict.passed for verdict in verdicts)
    assert "below 0.300" in verdicts[0].why
    assert judge(Gate(0.05, min_quality=0.2), Preference.FASTEST, measured(report(fp32=0.2)))[0].passed


def test_gain_over_a_base_of_zero_is_a_gain() -> None:
    assert chosen(Gate(0.05, 0.2), fp32=0.2) == "fp32"
    assert judge(Gate(0.05, 0.2), Preference.FASTEST, measured(report(base=0.0, fp32=0.2)))[0].passed


def test_without_an_untrained_answer_no_gain_is_asked_for() -> None:
    found = measured({key: value for key, value in report(fp32=0.2).items() if key != "base"})
    assert judge(Gate(0.05, 0.5), Preference.FASTEST, found)[0].chosen


def test_a_gain_of_quality_is_a_negative_loss() -> None:
    verdict = judge(Gate(0.0), Preference.FASTEST, measured(report(int8=0.22)))[0]
    assert verdict.passed
    assert verdict.quality_loss == pytest.approx(-0.1)


def test_where_cross_entropy_was_measured_it_decides() -> None:
    value = report(fp32=0.2, int8=0.1, int4=0.2)
    for variant, (loss, increase) in zip(value["variants"], ((3.0, 0.0), (3.006, 0.002), (3.6, 0.2)), strict=True):
        variant["loss"] = {"name": "cross_entropy", "value": loss}
        variant["loss_increase"] = {"name": "cross_entropy_increase", "value": increase}
    verdicts = judge(Gate(0.05), Preference.FASTEST, measured(value))
    assert [verdict.passed for verdict in verdicts] == [True, True, False]
    assert [verdict.quality_loss for verdict in verdicts] == [0.0, 0.002, 0.2]
    assert verdicts[1].chosen
    assert verdicts[2].why.startswith("cross entropy 3.600 is 20.0% above the tuned model's")
    assert next(v for v in judge(Gate(0.05), Preference.BEST_QUALITY, measured(value)) if v.chosen).precision == "fp32"
