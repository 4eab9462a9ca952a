"""Drift: tests that keep their rate of false alarms and find what is new, and cycles that drift starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf.json_format import ParseDict
from prometheus_client import generate_latest
from tidemill.pipeline.v1 import cycle_pb2
from tidemill.pipeline.v1.trigger_service_pb2 import PutTriggerRequest

from services.kit.errors import InvalidArgumentError
from services.kit.grpc.validation import validate
from services.pipeline.adapters.rows import spec_of, spec_row
from services.pipeline.domain.capture import Capture, CapturedAnswer
from services.pipeline.domain.cycle import CycleState
from services.pipeline.domain.drift import DriftRules, Signal
from services.pipeline.domain.feedback import Answer, Feedback
from services.pipeline.domain.triggers import Check, Triggers
from services.pipeline.engine.drift import label_shift, length_shift, level, rating_shift, text_shift
from services.pipeline.entrypoints.trigger_mapping import triggers_from, triggers_to
from tests.unit.pipeline.conftest import Harness
from tests.unit.pipeline.test_triggers import HOUR, World

DAY = 24 * HOUR
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


class Writer:
    """Writes short texts of common words and of those of a kind."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.words = {"common": self._words(200), "billing": self._words(50), "shipping": self._words(50)}

    def _words(self, count: int) -> Any:
        return np.array(["".join(self.rng.choice(_LETTERS, 6)) for _ in range(count)])

    def write(self, kind: str, count: int) -> list[str]:
        drawn = [self.rng.choice(self.words[each], (count, 6)) for each in ("common", kind)]
        return [" ".join(words) for words in np.concatenate(drawn, axis=1)]


def test_texts_of_one_kind_raise_no_more_alarms_than_stated_and_a_new_kind_does() -> None:
    writer, alarm, looks = Writer(1), 0.05, 120
    alarms = 0
    for seed in range(looks):
        reference, live = writer.write("billing", 60), writer.write("billing", 40)
        # Some callers ask the same again and again.
        alarms += text_shift(reference, live + live[:3] * 10, alarm, seed).p_value <= alarm
    # More than 16 of 120 at a rate of 5 % has a chance of 0.0001.
    assert alarms <= 16
    strict = level(0.05, 24, 3)
    found = 0
    for seed in range(10):
        reference, live = writer.write("billing", 300), writer.write("billing", 140) + writer.write("shipping", 60)
        found += text_shift(reference, live, strict, seed).p_value <= strict
    assert found >= 9


def test_the_level_of_a_look_leaves_a_month_its_rate() -> None:
    assert level(0.05, 24, 1) == pytest.approx(0.05 / 31)
    assert level(0.05, 24, 3) == pytest.approx(0.05 / 93)
    assert level(0.1, 720, 1) == pytest.approx(0.05)


def test_labels_lengths_and_ratings_keep_their_rates_and_find_a_change() -> None:
    rng, alarm, looks = np.random.default_rng(2), 0.05, 400
    alarms = {"labels": 0, "lengths": 0, "ratings": 0}
    for _ in range(looks):
        labels = [list(rng.choice(["a", "b", "c"], size, p=[0.6, 0.38, 0.02])) for size in (200, 150)]
        alarms["labels"] += label_shift(*labels).p_value <= alarm
        lengths = [list(rng.integers(10, 90, size)) for size in (200, 150)]
        alarms["lengths"] += length_shift(*lengths).p_value <= alarm
        ratings = [list(rng.choice([-1.0, 1.0], size, p=[0.2, 0.8])) for size in (50, 60)]
        alarms["ratings"] += rating_shift(*ratings).p_value <= alarm
    # More than 37 of 400 at a rate of 5 % has a chance of 0.0002.
    assert all(count <= 37 for count in alarms.values()), alarms
    strict = level(0.05, 24, 3)
    moved = label_shift(["a"] * 120 + ["b"] * 80, ["a"] * 60 + ["b"] * 100 + ["new"] * 40)
    assert moved.p_value < strict
    assert moved.now == pytest.approx(0.3)
    assert length_shift(list(range(200)), list(range(100, 300))).p_value < strict
    assert rating_shift([1.0] * 40 + [-1.0] * 10, [1.0] * 20 + [-1.0] * 30).p_value < strict
    # Better ratings are not drift.
    assert rating_shift([1.0] * 20 + [-1.0] * 30, [1.0] * 40 + [-1.0] * 10).p_value > 0.5
    assert rating_shift([1.0] * 50, [1.0] * 50).p_value == 1.0
    assert label_shift(["a"] * 50, ["a"] * 50).p_value == 1.0


class Watched:
    """A pipeline that has learnt from texts about billing, whose model is asked."""

    def __init__(self, world: World) -> None:
        self.world, self.writer, self.asked = world, Writer(3), 0
        world.spec = replace(world.spec, capture=Capture(keep_days=3650))
        world.harness.captures.put_policy(world.spec.model, world.spec.name, Capture(keep_days=3650))

    @property
    def folder(self) -> Path:
        """Where the data set is."""
        return Path(self.world.harness.artifacts.root.removeprefix("file://")) / "d"

    def store(self, texts: Sequence[str]) -> None:
        """Writes the snapshot that cycles learn from."""
        self.folder.mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": list(texts)}), self.folder / "train.parquet")

    async def learn(self, digest: str) -> None:
        """A cycle that learns from the snapshot."""
        world = self.world
        if not world.cycles or world.cycles[0].state is not CycleState.RUNNING:
            await world.start(world.spec, f"by-hand-{digest}", ())
        world.end()
        uri = f"{self.world.harness.artifacts.root}/d"
        version = {"name": "datasets/d/versions/1", "digest": digest, "uri": uri}
        world.harness.store.update(replace(world.cycles[0], dataset_version=version))

    def ask(self, texts: Sequence[str], label: str = "", version: int = 1, rating: float = 0.0) -> None:
        """Answers of a day."""
        world = self.world
        answers = []
        for text in texts:
            self.asked += 1
            world.clock.time += DAY / len(texts)
            model_version, time = f"{world.spec.model}/versions/{version}", world.clock.now()
            answers.append(
                CapturedAnswer(
                    f"answers/a{self.asked}", model_version, "predict" if label else "generate", text, text, time,
                    label=label,
                )
            )  # fmt: skip
        world.harness.captures.keep(answers)
        world.harness.feedback.remember([Answer(item.name, item.model_version, item.answer_time) for item in answers])
        if rating:
            said = [
                Feedback(f"f{item.name}", item.name, rating, "", f"user {n}", item.answer_time, item.model_version)
                for n, item in enumerate(answers)
            ]
            world.harness.feedback.record(said)

    async def day(self) -> None:
        """The service looks."""
        await self.world.drift.step()
        await self.world.triggers.step()

    async def check(self, signal: Signal) -> Check:
        decision = (await self.world.view()).decision
        return next(check for check in decision.checks if check.condition == f"drift.{signal.value}")


@pytest.fixture
async def watched(harness: Harness) -> Watched:
    found = Watched(World(harness))
    found.store(found.writer.write("billing", 300))
    return found


INPUT = DriftRules((Signal.INPUT,), min_answers=40)


async def test_drift_of_what_is_asked_starts_one_cycle_that_says_why(watched: Watched) -> None:
    world = watched.world
    await world.put(drift=INPUT)
    why = (await watched.check(Signal.INPUT)).why
    assert "No cycle has learnt yet, so there is nothing to compare with." in why
    await watched.learn("1")
    assert (await watched.check(Signal.INPUT)).why == (
        "No drift of what is asked is known. The next look is possible from 2026-03-03 12:00 UTC with 40 texts; "
        "0 so far."
    )
    watched.ask(watched.writer.write("billing", 60))
    world.clock.time -= HOUR
    await watched.day()
    assert (await watched.check(Signal.INPUT)).why.endswith("60 so far.")  # a look covers a whole day
    world.clock.time += HOUR
    await watched.day()
    why = (await watched.check(Signal.INPUT)).why
    assert why.startswith("No drift of what is asked at 2026-03-03 12:10 UTC: 60 texts since 2026-03-02 12:00 UTC")
    assert why.endswith("The next look is possible from 2026-03-04 12:10 UTC with 40 texts; 0 so far.")
    watched.ask(watched.writer.write("shipping", 60))
    # Another process looks, and the next one still knows.
    world.restart()
    await world.drift.step()
    world.restart()
    assert (await watched.check(Signal.INPUT)).met
    await world.triggers.step()
    (cycle, _) = world.cycles
    (reason,) = cycle.reasons
    assert reason.startswith(
        "Drift of what is asked: 60 texts since 2026-03-03 12:10 UTC beside 300 of datasets/d/versions/1: "
        "their similarity to these is "
    )
    assert reason.endswith("an alarm at 0.0016 or less; the chance of a false alarm in 30 days is 0.05 at most.")
    # No word of a person is in a reason, which outlives what they said.
    assert not any(word in reason for word in watched.writer.words["shipping"])
    # It learnt from the same data: the same drift starts no other cycle.
    await watched.learn("1")
    for _ in range(3):
        watched.ask(watched.writer.write("shipping", 60))
        await watched.day()
    assert len(world.cycles) == 2
    why = (await watched.check(Signal.INPUT)).why
    assert why.startswith("Drift of what is asked at 2026-03-04 12:10 UTC: ")
    assert why.endswith("A cycle has begun since. It is looked for again when the data set has changed.")
    # A data set with the new kind ends it, and is watched in turn.
    watched.store(watched.writer.write("billing", 150) + watched.writer.write("shipping", 150))
    await watched.learn("2")
    watched.ask(watched.writer.write("shipping", 30) + watched.writer.write("billing", 30))
    await watched.day()
    assert (await watched.check(Signal.INPUT)).why.startswith("No drift of what is asked at ")
    assert len(world.cycles) == 3


async def test_drift_is_held_back_like_every_condition(watched: Watched) -> None:
    await watched.world.put(drift=INPUT, max_cycles_per_day=0)
    await watched.learn("1")
    watched.ask(watched.writer.write("shipping", 60))
    await watched.day()
    assert len(watched.world.cycles) == 1
    assert await watched.world.hold() == "0 cycles of 0 were started in 24 hours (budget)."


async def test_drift_of_answers_is_beside_the_first_ones_of_the_version(watched: Watched) -> None:
    world = watched.world
    await world.put(drift=DriftRules((Signal.ANSWERS,), min_answers=40))
    await watched.learn("1")
    assert (await watched.check(Signal.ANSWERS)).why.endswith("No answer of models/headlines is captured yet.")
    watched.ask(watched.writer.write("billing", 30), "bill")
    assert (await watched.check(Signal.ANSWERS)).why.endswith("needs its first 40 answers to compare with.")
    watched.ask(watched.writer.write("billing", 30), "bill")
    watched.ask(watched.writer.write("billing", 50), "bill")
    await watched.day()
    assert "0% moved to other labels (p = 1)" in (await watched.check(Signal.ANSWERS)).why
    watched.ask(watched.writer.write("billing", 25), "bill")
    watched.ask(watched.writer.write("billing", 25), "parcel")
    await watched.day()
    (cycle, _) = world.cycles
    assert "50 answers since" in cycle.reasons[0]
    assert "of models/headlines/versions/1: 50% moved to other labels (p = " in cycle.reasons[0]
    await watched.learn("2")
    # Another version has first answers of its own.
    watched.ask(watched.writer.write("billing", 30), "parcel", version=2)
    await watched.day()
    assert "models/headlines/versions/2 needs its first 40" in (await watched.check(Signal.ANSWERS)).why


async def test_lower_ratings_are_drift_and_one_person_is_one(watched: Watched) -> None:
    world = watched.world
    await world.put(drift=DriftRules((Signal.RATINGS,), min_ratings=20))
    await watched.learn("1")
    for _ in range(2):
        watched.ask(watched.writer.write("billing", 30), rating=1.0)
        await watched.day()
    assert "the mean rating" not in (await watched.check(Signal.RATINGS)).why
    watched.ask(watched.writer.write("billing", 30), rating=-1.0)
    await watched.day()
    (cycle, _) = world.cycles
    assert "30 people who rated since" in cycle.reasons[0]
    assert "the mean rating went from 1.00 to " in cycle.reasons[0]


async def test_a_snapshot_that_is_gone_is_said(watched: Watched) -> None:
    await watched.world.put(drift=INPUT)
    await watched.learn("1")
    (watched.folder / "train.parquet").unlink()
    watched.ask(watched.writer.write("shipping", 60))
    await watched.day()
    assert "It could not be looked at: The snapshot " in (await watched.check(Signal.INPUT)).why
    watched.store(watched.writer.write("billing", 300))
    await watched.day()
    assert len(watched.world.cycles) == 2


async def test_looks_are_metrics(watched: Watched) -> None:
    await watched.world.put(drift=INPUT)
    await watched.learn("1")
    watched.ask(watched.writer.write("shipping", 60))
    await watched.day()
    text = generate_latest(watched.world.registry).decode()
    assert 'drift_found{pipeline="headlines",signal="input"} 1.0' in text


def test_rules_survive_the_contract_and_the_database(harness: Harness) -> None:
    rules = Triggers(drift=DriftRules((Signal.ANSWERS, Signal.RATINGS), 30, 15, 12.0, 0.1), alerts=("Drift",))
    assert triggers_from(triggers_to(rules)) == rules
    spec = replace(harness.spec, triggers=rules)
    assert spec_of(spec_row(spec)) == spec
    assert triggers_from(ParseDict({"drift": {}}, cycle_pb2.PipelineSpec().triggers)).drift == DriftRules()


@pytest.mark.parametrize(
    ("drift", "field"),
    [
        ({"signals": ["weather"]}, "spec.triggers.drift.signals[0]"),
        ({"min_answers": 5}, "spec.triggers.drift.min_answers"),
        ({"min_ratings": 3}, "spec.triggers.drift.min_ratings"),
        ({"every_hours": 0.5}, "spec.triggers.drift.every_hours"),
        ({"false_alarm": 2}, "spec.triggers.drift.false_alarm"),
    ],
)
def test_rules_that_say_nothing_are_refused_by_field(drift: dict[str, object], field: str) -> None:
    request = ParseDict({"spec": {"triggers": {"drift": drift}}}, PutTriggerRequest())
    with pytest.raises(InvalidArgumentError) as caught:
        validate(request)
    assert field in {violation.field for violation in caught.value.violations}
