from __future__ import annotations

import math
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from tidemill.common.v1 import failure_pb2
from tidemill.pipeline.v1 import cycle_pb2
from tidemill.training.v1 import run_pb2

from services.pipeline.domain.gate import Build, Figure, Gate, Measured, OnSlice, Preference, judge, measured
from services.pipeline.entrypoints.mapping import gate_from
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


def _figure(value: float, count: int = 40) -> dict[str, Any]:
    return {"name": "rouge_l", "value": value, "ci_low": value - 0.05, "ci_high": value + 0.05, "sample_size": count}


def test_no_build_of_a_model_that_is_worse_than_the_champion_passes() -> None:
    value = {**report(fp32=0.2), "champion": _figure(0.21), "over_champion": _figure(-0.01)}
    passes, fails = Gate(0.05, max_loss_to_champion=0.05), Gate(0.05, max_loss_to_champion=0.04)
    assert judge(passes, Preference.FASTEST, measured(value))[0].passed
    (verdict,) = judge(fails, Preference.FASTEST, measured(value))
    assert not verdict.passed
    assert "below the champion's 0.210: the difference is -0.010 [-0.060, 0.040]" in verdict.why
    # Without a champion there is nothing to be worse than.
    assert judge(fails, Preference.FASTEST, measured(report(fp32=0.2)))[0].passed


@pytest.mark.parametrize(
    ("gate", "why"),
    [
        (
            Gate(0.05, min_quality_on_corrections=0.5),
            "held-back corrections is 0.400 [0.350, 0.450], below 0.500",
        ),
        (
            Gate(0.05, min_gain_on_corrections=0.1),
            "gains 0.050 [0.000, 0.100] over the champion; the gate wants +0.100",
        ),
    ],
)
def test_no_build_of_a_model_that_did_not_learn_what_people_said_passes(gate: Gate, why: str) -> None:
    found = {"tuned": _figure(0.4, 12), "over_base": _figure(0.3, 12), "over_champion": _figure(0.05, 12)}
    (verdict,) = judge(gate, Preference.FASTEST, measured({**report(fp32=0.2), "corrections": found}))
    assert not verdict.passed
    assert why in verdict.why
    # While there is no champion, the base model counts.
    del found["over_champion"]
    (verdict,) = judge(gate, Preference.FASTEST, measured({**report(fp32=0.2), "corrections": found}))
    assert verdict.passed == (gate.min_gain_on_corrections is not None)
    # Too few say nothing.
    few = {"tuned": _figure(0.0, 9), "over_champion": _figure(-0.5, 9)}
    assert judge(gate, Preference.FASTEST, measured({**report(fp32=0.2), "corrections": few}))[0].passed


def _slice(name: str, over: float, p_worse: float, count: int = 40) -> dict[str, Any]:
    """As the report has it: `name` on which the champion has 0.5."""
    found = {
        "tuned": _figure(0.5 + over, count),
        "champion": _figure(0.5, count),
        "over_champion": _figure(over, count),
    }
    return {"attribute": "source", "value": name, "examples": count, "comparison": found, "p_worse": p_worse}


@pytest.mark.parametrize(
    ("slices", "passes"),
    [
        ([_slice("news", -0.03, 0.01)], False),
        # Within the margin, however certain.
        ([_slice("news", -0.025, 0.0005)], True),
        # A larger loss that chance explains.
        ([_slice("news", -0.2, 0.06)], True),
        ([_slice("mail", 0.1, 1.0), _slice("news", -0.1, 0.05)], False),
    ],
)
def test_no_build_of_a_model_that_is_worse_on_a_slice_passes(slices: list[dict[str, Any]], passes: bool) -> None:
    value = {**report(fp32=0.2), "champion": _figure(0.2), "over_champion": _figure(0.0), "slices": slices}
    (verdict,) = judge(Gate(0.05, max_slice_loss_to_champion=0.05), Preference.FASTEST, measured(value))
    assert verdict.passed == passes
    # It is asked for, or not at all.
    assert judge(Gate(0.05), Preference.FASTEST, measured(value))[0].passed


def test_slices_are_read_as_training_sends_them() -> None:
    def figure(value: float) -> failure_pb2.Metric:
        return failure_pb2.Metric(name="accuracy", value=value, ci_low=value, ci_high=value, sample_size=40)

    sent = run_pb2.Report(tuned=figure(0.8), champion=figure(0.8), over_champion=figure(0.0))
    sent.slices.add(attribute="language", examples=40, p_worse=0.0005).comparison.CopyFrom(
        # A model that is right nowhere: zeros are left out of the JSON.
        run_pb2.Comparison(tuned=figure(0.0), champion=figure(0.5), over_champion=figure(-0.5))
    )
    sent.slices.add(attribute="language", pooled_values=3, examples=4)
    sent.slices.add(attribute="source", value="a", examples=40).comparison.tuned.CopyFrom(figure(0.1))
    found = measured(MessageToDict(sent, preserving_proto_field_name=True))
    assert found.slices == (OnSlice("language none", 40, 0.0, 0.5, Figure(-0.5, -0.5, -0.5), 0.0005),)


@pytest.mark.parametrize("value", [None, 0.0, 0.05])
def test_a_demand_that_is_left_out_is_none(value: float | None) -> None:
    found = gate_from(cycle_pb2.Gate(max_quality_loss=0.1, max_slice_loss_to_champion=value))
    assert found == Gate(0.1, max_slice_loss_to_champion=value)


def test_the_worst_slice_is_named() -> None:
    few = {"attribute": "source", "pooled_values": 3, "examples": 4}
    slices = [_slice("news", -0.1, 0.01), {**_slice("", -0.2, 0.002), "pooled_values": 12}, few]
    value = {**report(fp32=0.2), "champion": _figure(0.2), "over_champion": _figure(0.0), "slices": slices}
    (verdict,) = judge(Gate(0.05, max_slice_loss_to_champion=0.02), Preference.FASTEST, measured(value))
    assert verdict.why == (
        "On the slice source 12 pooled values (40 records) the tuned model's rouge_l 0.300 is below the champion's "
        "0.500: the difference is -0.200 [-0.250, -0.150], p = 0.002 over all 2 slices, and the gate allows -0.010. So "
        "it is on 1 more."
    )


def test_a_demand_on_slices_that_says_nothing_is_said() -> None:
    gate = Gate(0.05, max_slice_loss_to_champion=0.02)
    value = {**report(fp32=0.2), "champion": _figure(0.2), "over_champion": _figure(0.0)}
    (verdict,) = judge(gate, Preference.FASTEST, measured(value))
    assert verdict.passed
    assert "No slice of the hold-out was measured" in verdict.why
    # Without a champion nothing is demanded.
    (verdict,) = judge(gate, Preference.FASTEST, measured(report(fp32=0.2)))
    assert "slice" not in verdict.why


# As reports carry them: a metric may be zero, negative or, where training diverged, not a number.
_FIGURES = st.one_of(
    st.floats(-10, 10), st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf]), st.floats(0, 1).map(lambda x: x / 7)
)


@st.composite
def _builds(draw: st.DrawFn) -> tuple[Build, ...]:
    losses = draw(st.booleans())
    return tuple(
        Build(
            precision=precision,
            uri=precision,
            digest="",
            size_bytes=draw(st.integers(0, 10**9)),
            speed=draw(st.floats(0, 1000)),
            speed_unit="tokens/s",
            quality=draw(_FIGURES),
            loss=draw(_FIGURES) if losses else None,
            loss_increase=draw(_FIGURES) if losses else None,
        )
        for precision in draw(st.lists(st.sampled_from(["fp32", "int8", "int4"]), max_size=4))
    )


_GATES = st.builds(Gate, st.floats(0, 1), st.floats(0, 3), st.floats(0, 2))


@given(_GATES, st.sampled_from(Preference), _FIGURES, st.one_of(st.none(), _FIGURES), _builds())
def test_whatever_was_measured_at_most_one_build_is_chosen_and_only_a_good_one(
    gate: Gate, preference: Preference, tuned: float, base: float | None, builds: tuple[Build, ...]
) -> None:
    verdicts = judge(gate, preference, Measured("rouge_l", base, tuned, builds))
    assert [verdict.precision for verdict in verdicts] == [build.precision for build in builds]
    assert all(verdict.why for verdict in verdicts)
    passed = [verdict for verdict in verdicts if verdict.passed]
    assert sum(verdict.chosen for verdict in verdicts) == bool(passed)
    for verdict in passed:
        assert math.isfinite(verdict.quality_loss)
        assert verdict.quality_loss <= gate.max_quality_loss + 1e-6
    if passed:
        assert math.isfinite(tuned)
        assert tuned >= gate.min_quality or not gate.min_quality
        assert base is None or not gate.min_gain_over_base or tuned > base


@given(st.floats(-10, 10), st.floats(0.001, 10), st.floats(0, 1))
def test_a_build_worse_than_the_tuned_model_has_a_loss_whatever_its_sign(
    tuned: float, worse_by: float, limit: float
) -> None:
    build = Build("int8", "", "", 1, 1.0, "texts/s", tuned - worse_by)
    (verdict,) = judge(Gate(limit), Preference.FASTEST, Measured("score", None, tuned, (build,)))
    assert verdict.quality_loss > 0
    assert verdict.passed == (verdict.quality_loss <= limit + 1e-9)


@given(st.floats(-10, 10).filter(lambda x: abs(x) > 1e-3), st.floats(0.001, 3))
def test_a_gain_of_just_what_is_wanted_is_enough_whatever_the_last_bit(base: float, gain: float) -> None:
    tuned = base + abs(base) * gain
    build = Build("int8", "", "", 1, 1.0, "texts/s", tuned)
    for found, passes in ((tuned, True), (base + abs(base) * gain * 0.99, False), (base, False)):
        (verdict,) = judge(Gate(1.0, gain), Preference.FASTEST, Measured("score", base, found, (build,)))
        assert verdict.passed is passes, (found, verdict.why)


def test_a_gain_is_reached_also_where_the_product_rounds_up() -> None:
    assert 0.1 * (1 + 0.1) > 0.11
    assert judge(Gate(0.05, 0.1), Preference.FASTEST, measured(report(base=0.1, tuned=0.11, fp32=0.11)))[0].passed


def test_a_training_that_diverged_is_reported_and_publishes_nothing() -> None:
    verdicts = judge(Gate(1.0), Preference.FASTEST, measured(report(tuned=math.nan, fp32=0.2)))
    assert not verdicts[0].passed
    assert "could not be measured" in verdicts[0].why


def test_a_build_without_a_measured_quality_does_not_pass() -> None:
    value = report(fp32=0.2, int8=0.2)
    del value["variants"][1]["quality"]
    verdicts = judge(Gate(1.0), Preference.FASTEST, measured(value))
    assert [verdict.passed for verdict in verdicts] == [True, False]
    assert "broken" in verdicts[1].why


def test_a_build_whose_loss_was_not_measured_is_not_the_best_for_that() -> None:
    value = report(fp32=0.2, int8=0.19)
    value["variants"][0]["loss"] = {"name": "cross_entropy", "value": 3.0}
    value["variants"][0]["loss_increase"] = {"name": "cross_entropy_increase"}
    verdicts = judge(Gate(0.1), Preference.BEST_QUALITY, measured(value))
    assert [verdict.chosen for verdict in verdicts] == [True, False]
