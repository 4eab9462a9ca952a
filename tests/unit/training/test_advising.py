"""What `tidemill advise` picks: rules on predictions, without a machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from services.kit.errors import FieldViolation, InvalidArgumentError, NotFoundError, TidemillError
from services.training.adapters.base_models import _BGE, _SMOLLM2
from services.training.app.advising import Advising, losses_of
from services.training.domain.advice import GOALS, Candidate, Miss, Predicted, Wishes, ranked
from services.training.domain.device import DEVICES, Pass, Speed
from services.training.domain.machine import Machine
from services.training.domain.report import Metric, Report, Variant
from services.training.domain.tasks import TASKS, VARIANTS
from services.training.domain.training_spec import BaseModel
from services.training.engine.advising import Advice, advise, predict
from services.training.engine.build_costs import file_bytes, fit_speed, reading, serving_bytes, tail_of, writing
from services.training.engine.model_shape import Shape
from tests.unit.training.test_supervision import FakeMeasuredDevice, Harness, engine, harness

__all__ = ["engine", "harness"]

_LARGE = Machine("cpu", 64 * 10**9)
_BASES = {"encoder": {"bge": _BGE}, "causal": {"smollm2": _SMOLLM2}}
_LARGER = {**_BGE, "num_hidden_layers": 12}


def _advised(task: str, device: str = "edge", trainer: Machine = _LARGE, **wanted: Any) -> Advice:
    wishes = Wishes(task, device, **wanted)
    return advise(wishes, DEVICES[device], _BASES[wishes.architecture], trainer, {})


def test_a_small_device_gets_the_smallest_build_that_loses_little() -> None:
    found = _advised("text_classification", max_size_bytes=50 * 10**6, max_latency_ms=300)
    assert (found.goal, found.pick.build, found.pick.fits, found.preference) == ("small", "int8", True, "smallest")
    assert found.spec.variants == ("int8",)
    assert found.spec.method.kind == "lora"
    fp32 = found.candidates[1]
    assert [miss.limit for miss in fp32.misses] == ["max_size_bytes"], "95 MB are more than 50"


def test_a_writer_in_4_bits_is_refused_by_the_usual_gate_and_picked_where_its_loss_is_allowed() -> None:
    usual = _advised("generation", max_latency_ms=60_000)
    assert usual.pick.build == "int8"
    assert {c.build: [m.limit for m in c.misses] for c in usual.candidates}["int4"] == ["max_quality_loss"]
    assert _advised("generation", max_quality_loss=0.2).pick.build == "int4"


def test_accuracy_first_is_full_fine_tuning_in_mixed_precision_where_memory_allows() -> None:
    found = _advised("generation", "server", goal="accuracy")
    assert (found.pick.build, found.spec.method.kind, found.spec.optimization.precision) == ("fp32", "full", "auto")
    assert found.preference == "best_quality"
    small = _advised("generation", "server", Machine("cpu", 2_500_000_000), goal="accuracy")
    assert small.spec.method.kind == "lora"
    assert "full fine-tuning needs" in small.notes[0]


def test_many_callers_get_replicas_and_a_cache() -> None:
    one = _advised("text_classification", "server", max_latency_ms=100)
    assert (one.serving.replicas, one.serving.answer_cache_bytes) == (1, 0)
    many = _advised("text_classification", "server", max_latency_ms=100, callers=500)
    assert many.goal == "concurrency"
    assert many.serving.replicas > 1
    assert many.serving.answer_cache_bytes > 0
    more = _advised("text_classification", "server", max_latency_ms=100, callers=5000)
    assert more.serving.replicas > many.serving.replicas


def test_where_nothing_fits_the_nearest_comes_first_with_what_to_relax() -> None:
    found = _advised("text_classification", max_size_bytes=20 * 10**6, max_latency_ms=300)
    assert not found.pick.fits
    assert found.pick.build == "int8"
    (miss,) = found.relax
    assert miss.limit == "max_size_bytes"
    assert 20e6 < miss.found < 30e6
    relaxed = _advised("text_classification", max_size_bytes=round(miss.found) + 1, max_latency_ms=300)
    assert relaxed.pick.fits, "what it asks to relax is enough"


def test_the_larger_base_model_is_taken_unless_it_is_too_slow() -> None:
    wishes = Wishes("text_classification", "server", goal="balanced")
    bases = {"small": _BGE, "large": _LARGER}
    picked = advise(wishes, DEVICES["server"], bases, _LARGE, {})
    assert picked.pick.base_model == "large"
    latencies = {(c.base_model, c.build): c.predicted.latency_ms for c in picked.candidates}
    between = (latencies["large", "int8"] + latencies["small", "int8"]) / 2
    tight = advise(replace(wishes, max_latency_ms=between), DEVICES["server"], bases, _LARGE, {})
    assert tight.pick.base_model == "small"


def test_what_runs_measured_counts_more_than_what_is_usual() -> None:
    wishes = Wishes("generation", "edge")
    measured = {("smollm2", "int8"): [0.2, 0.07, 0.06], ("smollm2", "int4"): [0.01]}
    found = advise(wishes, DEVICES["edge"], _BASES["causal"], _LARGE, measured)  # type: ignore[arg-type]
    assert (found.pick.build, found.pick.measured_runs) == ("int4", 1)
    int8 = next(c for c in found.candidates if c.build == "int8")
    assert (int8.predicted.quality_loss, int8.measured_runs) == (0.07, 3)


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"task": "translation"}, "task"),
        ({"device": "toaster"}, "device"),
        ({"goal": "best"}, "goal"),
        ({"max_latency_ms": -1.0}, "max_latency_ms"),
        ({"max_size_bytes": -1}, "max_size_bytes"),
        ({"max_memory_bytes": -1}, "max_memory_bytes"),
        ({"max_quality_loss": 1.5}, "max_quality_loss"),
    ],
)
def test_wrong_wishes_are_refused_by_field(wanted: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        Wishes(**{"task": "generation", **wanted})
    assert [each.field for each in refused.value.violations] == [field]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("task", TASKS)
def test_every_device_and_goal_has_advice_that_can_be_trained(task: str, device: str) -> None:
    for goal in GOALS:
        found = _advised(task, device, goal=goal)
        assert found.pick.fits
        assert found.reason
        assert found.spec.variants == (found.pick.build,)


def test_longer_texts_take_longer_and_more_memory() -> None:
    for kind, task in (("encoder", "text_classification"), ("causal", "generation")):
        shape = Shape.of_config(next(iter(_BASES[kind].values())))
        for build in TASKS[task].VARIANTS:
            short, long = (
                predict(Wishes(task, "edge", max_input_tokens=tokens), DEVICES["edge"], shape, build)
                for tokens in (64, 256)
            )
            assert short.latency_ms < long.latency_ms
            assert serving_bytes(shape, build, 64) < serving_bytes(shape, build, 256)


def test_the_size_of_published_builds_of_the_example_is_met() -> None:
    shape = Shape.of_config(_SMOLLM2)
    # README.md, "Quick start".
    for build, size in zip(VARIANTS, (544e6, 142e6, 102e6), strict=True):
        assert file_bytes(shape, build) == pytest.approx(size, rel=0.03)


def test_a_speed_is_found_again_in_the_times_that_it_gives() -> None:
    speed = Speed(0.2, 20.0, 100.0, 400.0)
    shapes = [Shape.of_config({**_SMOLLM2, "num_hidden_layers": layers}) for layers in (4, 12)]
    shapes += [Shape.of_config({**_SMOLLM2, "hidden_size": 288, "intermediate_size": 800})]
    passes = [
        replace(cost, ms=speed.ms(cost))
        for shape in shapes
        for tokens in (16, 128, 256)
        for cost in (reading(shape, "int8", tokens), writing(shape, "int8", tokens))
    ]
    found = fit_speed(passes)
    for cost in passes:
        assert found.ms(cost) == pytest.approx(cost.ms, rel=1e-3)


def test_no_part_of_a_speed_is_negative_and_a_tail_is_at_least_one() -> None:
    odd = [Pass(2, 1e8, 1e6, 1e6, 9.0), Pass(2, 2e8, 1e6, 2e6, 5.0), Pass(4, 1e8, 4e6, 1e6, 2.0)]
    found = fit_speed(odd)
    assert min(found.per_layer, found.per_gflop, found.per_gbyte, found.per_gvalue) >= 0
    assert tail_of([[1.0, 1.0, 1.0]]) == 1.0
    assert tail_of([[1.0] * 90 + [3.0] * 10]) == 3.0


def test_of_those_that_do_not_fit_the_one_that_misses_least_is_nearest() -> None:
    predicted = Predicted(1, 1, 1, 1, 0)
    near = Candidate("b", 1, "int8", predicted, misses=(Miss("max_size_bytes", 10, 11),))
    far = Candidate("b", 1, "fp32", predicted, misses=(Miss("max_size_bytes", 10, 40),))
    both = Candidate("b", 1, "int4", predicted, misses=(*near.misses, Miss("max_latency_ms", 10, 10.1)))
    assert ranked("small", [far, both, near]) == [near, far, both]


class _Models:
    """Two prepared models."""

    def names(self) -> Sequence[str]:
        return ["bge", "smollm2"]

    def find(self, name: str) -> BaseModel:
        raise NotImplementedError

    def config(self, name: str) -> Mapping[str, Any]:
        found = {"bge": _BGE, "smollm2": _SMOLLM2}.get(name)
        if found is None:
            wrong = f"{name!r} is not there"
            raise NotFoundError(
                f"spec.base_model: {wrong}",
                reason="BASE_MODEL_NOT_FOUND",
                violations=[FieldViolation("spec.base_model", wrong)],
            )
        return found


@pytest.mark.parametrize(
    ("wanted", "error", "field"),
    [
        ({"base_models": ("bge", "other")}, NotFoundError, "base_models[1]"),
        ({"base_models": ("smollm2",)}, InvalidArgumentError, "base_models[0]"),
        ({"base_models": ("bge",), "max_input_tokens": 1024}, InvalidArgumentError, "max_input_tokens"),
    ],
)
def test_a_base_model_that_cannot_be_used_is_refused_by_field(
    harness: Harness, wanted: dict[str, Any], error: type[TidemillError], field: str
) -> None:
    advising = Advising(_Models(), harness.store, harness.machine, FakeMeasuredDevice())
    with pytest.raises(error) as refused:
        advising.advise(Wishes("text_classification", "edge", **wanted))
    assert [each.field for each in refused.value.violations] == [field]


def test_known_base_models_of_the_right_kind_are_the_choice(harness: Harness) -> None:
    advising = Advising(_Models(), harness.store, harness.machine, FakeMeasuredDevice())
    for task, base in (("text_classification", "bge"), ("text_embedding", "bge"), ("generation", "smollm2")):
        found = advising.advise(Wishes(task))
        assert {each.base_model for each in found.candidates} == {base}
        assert found.device.measured


def test_losses_are_those_that_the_gate_counts() -> None:
    def metric(value: float) -> Metric:
        return Metric("m", value, value, value, 10)

    written = Report(
        metric(0.3),
        variants=(Variant("int4", "", "", 1, metric(0.1), loss_increase=metric(0.08)),),
    )
    assert losses_of(written) == {"int4": 0.08}
    labelled = Report(metric(0.8), variants=(Variant("int8", "", "", 1, metric(0.76)),))
    assert losses_of(labelled)["int8"] == pytest.approx(0.05)
