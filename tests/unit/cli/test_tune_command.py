"""`tidemill tune`: what it refuses before anything starts, which values it tries until when, and what it prints."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tidemill.training.v1 import run_pb2

from gateway.cli import tune_command
from gateway.cli.pipeline_file import load_pipeline
from gateway.cli.search_space import SearchSpace, Values, search_space
from gateway.cli.search_trials import Budget, Metric, Trial, best_of, indistinct, search
from services.kit.errors import FailedPreconditionError, InvalidArgumentError

_FILE = """\
name: reviews
sources:
  - source: reviews
    text_folder: {uri: reviews, folder_attribute: label}
dataset: {name: datasets/reviews, holdout: {fraction: 0.1}}
training:
  base_model: bge-small-zh-v1.5
  model_name: reviews
  text_classification: {label_field: label, max_input_tokens: 64}
  lora: {r: 8, alpha: 16}
  optimization: {max_steps: 60, batch_size: 4, learning_rate: 1e-3}
  compression: {variants: [fp32, int8]}
gate: {max_quality_loss: 0.05}
rollout: {model: models/reviews, preference: fastest}
"""
_SEARCH = """\
search:
  ranges:
    optimization.learning_rate: {low: 1e-4, high: 1e-2, log: true}
    lora.r: [4, 8, 16]
  trials: 12
  max_minutes: 60
  seed: 7
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(search: str) -> Path:
        path = tmp_path / "reviews.yaml"
        path.write_text(_FILE + search, encoding="utf-8")
        return path

    return write


def space_of(path: Path) -> SearchSpace:
    return search_space(load_pipeline(path))


def test_ranges_are_those_of_the_file(write: Write) -> None:
    space = space_of(write(_SEARCH))
    rank, rate = space.ranges
    assert (rank.name, rank.values) == ("lora.r", (4, 8, 16))
    assert (rate.name, rate.low, rate.high, rate.log) == ("optimization.learning_rate", 1e-4, 1e-2, True)
    assert space.own == {"lora.r": 8, "optimization.learning_rate": 1e-3}
    spec = space.spec({"lora.r": 16, "optimization.learning_rate": 0.004})
    assert (spec.lora.r, spec.lora.alpha, spec.optimization.learning_rate) == (16, 16, 0.004)
    assert space.training.lora.r == 8


def test_values_may_be_texts_names_of_an_enum_or_truths(write: Write) -> None:
    ranges = "base_model: [a, b]\n    optimization.precision: [fp32, bf16]\n    lora.use_dora: [true, false]"
    space = space_of(write(f"search:\n  ranges:\n    {ranges}\n"))
    spec = space.spec({"base_model": "b", "optimization.precision": "bf16", "lora.use_dora": True})
    assert (spec.base_model, spec.optimization.precision, spec.lora.use_dora) == ("b", run_pb2.PRECISION_BF16, True)
    assert len(space.combinations(8) or ()) == 8
    assert space.combinations(7) is None


@pytest.mark.parametrize(
    ("search", "wrong"),
    [
        ("", r"reviews\.yaml: search: is missing"),
        ("search: {trials: 3}", r"yaml:15:\d+: search\.ranges"),
        ("search: {ranges: {lora.r: [4]}, trials: 0}", r"yaml:15:\d+: search\.trials: .*1"),
        ("search: {ranges: {lora.r: [4]}, max_minutes: 0}", r"yaml:15:\d+: search\.max_minutes"),
        ("search: {ranges: {lora.r: [4]}, minutes: 3}", r"yaml:15:\d+: search: unknown field 'minutes'"),
        (
            "search: {ranges: {lora.r: {low: 8, high: 4}}}",
            r"yaml:15:19: search\.ranges\['lora\.r'\]: low must be below high",
        ),
        ("search: {ranges: {lora.r: {low: 8}}}", r"search\.ranges.*either low and high, or values"),
        ("search: {ranges: {lora.r: {low: 0, high: 4, log: true}}}", r"log needs low above 0"),
        ("search: {ranges: {lora.r: {low: 1.5, high: 4}}}", r"search\.ranges\.lora\.r: is a whole number"),
        ("search: {ranges: {lora.r: {low: 0, high: 4}}}", r"search\.ranges\.lora\.r: 0: .*1"),
        ("search: {ranges: {lora.r: [4, many]}}", r"search\.ranges\.lora\.r: expected a number, found 'many'"),
        ("search: {ranges: {lora.r: [[4]]}}", r"yaml:15:\d+: search\.ranges\.lora\.r\.values\[0\]: expected"),
        ("search: {ranges: {lora.rank: [4]}}", r"yaml:15:\d+: search\.ranges\.lora\.rank: unknown field 'rank'"),
        ("search: {ranges: {learning_rat: [4]}}", r"search\.ranges\.learning_rat: unknown field 'learning_rat'"),
        ("search: {ranges: {dpo.beta: [0.1]}}", r"search\.ranges\.dpo\.beta: the method of this training is lora"),
        ("search: {ranges: {optimization: [1]}}", r"search\.ranges\.optimization: is not a single value"),
        ("search: {ranges: {optimization.epochs: [2]}}", r"optimization\.epochs: 2\.0: .*max_steps and epochs"),
        ("search: {ranges: {optimization.precision: [fp8]}}", r"'fp8' is not a valid value"),
        ("search: {ranges: {optimization.batch_size: {low: 1, high: 1e10}}}", r"batch_size: 10000000000 is out of"),
        ("search: {ranges: {compression.variants: [int8]}}", r"compression\.variants: does not change what is"),
        ("search: {ranges: {text_classification.label_field: [a, b]}}", r"label_field: changes what is measured"),
        ("search: {ranges: {base_model: {low: 1, high: 2}}}", r"base_model: is not a number"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(write: Write, search: str, wrong: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        space_of(write(search))
    assert re.search(wrong, refused.value.message), refused.value.message


def measured(values: Values, half: float = 0.01) -> Metric:
    """As if a rate of 0.003 and a high rank were best."""
    rate, rank = float(values["optimization.learning_rate"]), float(values["lora.r"])
    value = 0.9 - abs(rate - 0.003) * 20 + rank / 1000
    return Metric("accuracy", value, value - half, value + half, 100)


def made(space: SearchSpace, budget: Budget, seed: int = 7, fails: int = 0) -> list[Trial]:
    """The trials of a search in which the trial of a number fails; each takes ten seconds."""

    def attempt(number: int, values: Values, left_s: float | None) -> Trial:
        if number == fails:
            return Trial(values, 10, why="the loss is not finite")
        if left_s is not None and left_s < 10:
            return Trial(values, left_s, why="the time of the search was over", cut=True)
        return Trial(values, 10, measured(values))

    return list(search(space, budget, seed, attempt))


def test_an_interrupted_search_makes_the_same_trials_again(write: Write) -> None:
    space = space_of(write(_SEARCH))
    whole = made(space, Budget(16), fails=3)
    assert len(whole) == len({tuple(each.values.items()) for each in whole}) == 16
    assert made(space, Budget(6), fails=3) == whole[:6]
    assert [each.values for each in made(space, Budget(16), seed=8)] != [each.values for each in whole]
    assert whole[0].values == space.own
    assert whole[2].measured is None
    best = best_of(whole)
    assert best is not None
    assert best.measured is not None
    assert all(each.measured is None or each.measured.value <= best.measured.value for each in whole)


def test_what_was_chosen_is_what_is_written(write: Write) -> None:
    for trial in made(space_of(write(_SEARCH)), Budget(12)):
        rate = trial.values["optimization.learning_rate"]
        assert isinstance(rate, float)
        assert float(f"{rate:.3g}") == rate
        assert 1e-4 <= rate <= 1e-2


def test_few_combinations_are_all_tried_once(write: Write) -> None:
    ranges = "{optimization.learning_rate: [0.001, 0.003], lora.r: {low: 4, high: 6}}"
    space = space_of(write(f"search: {{ranges: {ranges}}}"))
    found = made(space, Budget(20))
    assert len({tuple(each.values.items()) for each in found}) == len(found) == 6
    assert best_of(found) == replace(found[0], values={"lora.r": 6, "optimization.learning_rate": 0.003}, measured=measured({"lora.r": 6, "optimization.learning_rate": 0.003}))  # fmt: skip  # noqa: E501


def test_a_search_ends_within_its_time_and_continues_with_more(write: Write) -> None:
    space = space_of(write(_SEARCH))
    short = made(space, Budget(12, seconds=35))
    assert [each.seconds for each in short] == [10, 10, 10, 5]
    assert short[-1].cut
    assert made(space, Budget(12, seconds=40))[:3] == short[:3]
    assert len(made(space, Budget(12, seconds=40))) == 4
    assert made(space, Budget(12, seconds=100))[3].values == short[-1].values


def test_no_trial_succeeded(write: Write) -> None:
    space = space_of(write("search: {ranges: {lora.r: [4]}}"))
    (only,) = search(space, Budget(3), 0, lambda _, values, __: Trial(values, 1, why="it failed"))
    assert best_of([only]) is None


def test_a_loss_is_better_when_it_is_lower() -> None:
    found = [Trial({"lora.r": r}, 1, Metric("loss", r, r - 1, r + 1, 9, lower_is_better=True)) for r in (5, 3, 4, 8)]
    best = best_of(found)
    assert best is found[1]
    assert indistinct(found, found[1]) == 1


def test_the_table_shows_values_intervals_seconds_and_failures(write: Write) -> None:
    space = space_of(write(_SEARCH))
    trials = [replace(each, run=f"runs/{at}") for at, each in enumerate(made(space, Budget(3), fails=2))]
    console = Console(width=200)
    with console.capture() as captured:
        console.print(tune_command.table_of(space, trials, best_of(trials)))
    lines = captured.get().splitlines()
    assert lines[0].split() == ["trial", "lora.r", "optimization.learning_rate", "accuracy", "95", "%", "interval", "seconds", "run"]  # fmt: skip  # noqa: E501
    assert "the loss is not finite" in lines[2]
    assert sum("best" in line for line in lines) == 1
    first = trials[0].measured
    assert first is not None
    assert f"{first.ci_low:.4f} to {first.ci_high:.4f}" in lines[1]


def test_the_printed_training_is_that_of_the_file_with_the_best_values(write: Write) -> None:
    path = write(_SEARCH)
    training = tune_command.tuned_training(path, {"lora.r": 16, "optimization.learning_rate": 0.00012})
    before = yaml.safe_load(path.read_text())["training"]
    before["lora"]["r"], before["optimization"]["learning_rate"] = 16, 0.00012
    assert training == before
    again = yaml.safe_load(_FILE)
    again["training"] = training
    path.write_text(yaml.safe_dump(again), encoding="utf-8")
    assert load_pipeline(path).spec.training.optimization.learning_rate == 0.00012


def test_without_optuna_the_extra_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(FailedPreconditionError, match=r"tidemill\[tune\]"):
        made(space_of(write(_SEARCH)), Budget(2))
