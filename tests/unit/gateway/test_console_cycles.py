"""The console's pages of a loop and of a cycle, from real messages."""

from __future__ import annotations

from typing import Any

import pytest
from tidemill.pipeline.v1.cycle_pb2 import Cycle
from tidemill.pipeline.v1.rollout_pb2 import ModelRollout
from tidemill.pipeline.v1.trigger_pb2 import Trigger
from tidemill.training.v1.run_pb2 import LossPoint

from gateway.cards.report import gains
from gateway.console.pages.cycles import builds, facts
from gateway.console.pages.loops import picture
from services.kit.errors import UnavailableError
from tests.integration.gateway.console_peers import trigger
from tests.unit.cli.cycles import START, metric, running, sliced, succeeded
from tests.unit.gateway.console_pages import CHINESE, HOSTILE, LONG, rendered, text_of


def cycle_page(cycle: Cycle, **more: Any) -> str:
    return rendered("cycle.html", **{"rollout": None, "may_cancel": True, **facts(cycle), **more})


def loop_page(cycles: list[Cycle], found: Trigger | None, **more: Any) -> str:
    newest = cycles[0] if cycles else None
    values = {
        "name": "pipelines/headlines",
        "cycles": cycles,
        "newest": newest,
        "stages": picture(newest, START + 50.0) if newest else [],
        "trigger": found,
        "by_hand": found is None,
        "rollouts": [],
        "errors": [],
        "refresh": 3,
        "older": "",
        "after": "",
        "may_pause": True,
    }
    return rendered("loop.html", **{**values, **more})


def test_the_picture_shows_how_far_a_stage_is() -> None:
    stages = picture(running(), START + 50.0)
    assert [(stage.name, stage.status.word, stage.took) for stage in stages] == [
        ("collect", "done", "3.0 s"),
        ("clean", "reused", "3.0 s"),
        ("train", "running", "42.0 s"),
        ("gate", "pending", ""),
        ("publish", "pending", ""),
    ]
    assert (stages[2].done, stages[2].total) == (34, 60)
    assert stages[2].detail == "evaluate · 34/60 steps · 0.31/s · loss 2.41 · 1:24 left"


def test_a_loop_says_why_the_next_cycle_starts_when() -> None:
    found = trigger()
    page = loop_page([running(), succeeded()], found)
    shown = text_of(page)
    for words in (found.summary, *(check.why for check in found.checks), *found.holds):
        assert words in shown
    assert 'max="60" value="12"' in page
    assert "Pause its triggers" in shown
    assert "Pause its triggers" not in loop_page([running()], found, may_pause=False)
    found.paused, found.pause_reason = True, HOSTILE
    assert f"Paused: {HOSTILE}" in text_of(loop_page([], found))
    assert "Resume its triggers" in text_of(loop_page([], found))


def test_a_loop_without_triggers_or_without_answers_says_so() -> None:
    assert "a person starts its cycles" in loop_page([succeeded()], None)
    assert LONG in text_of(loop_page([], None, by_hand=False, errors=[UnavailableError(LONG)]))


def test_a_cycle_shows_quality_builds_and_verdicts() -> None:
    cycle = succeeded()
    cycle.report.champion.CopyFrom(metric(0.19))
    cycle.report.over_champion.CopyFrom(metric(0.005))
    page = cycle_page(cycle)
    shown = text_of(page)
    assert "2,225 in, 2,059 kept: 1,859 for training, 200 held out." in shown
    assert "159 exact duplicate" in shown
    assert "over the base model +0.094 [+0.074, +0.114] better" in shown
    assert "over the champion +0.005 [-0.015, +0.025] not certain" in shown
    assert "int4 112 MB 128 0.165 +26.0 % refused" in shown
    assert "int8 171 MB 83.1 0.219 +1.8 % published" in shown
    assert page.count('<svg class="plot"') == 2
    assert 'aria-label="base 0.129, from 0.109 to 0.149; champion 0.190' in page


def test_corrections_have_a_plot_of_their_own() -> None:
    cycle = succeeded()
    found = cycle.report.corrections
    found.tuned.CopyFrom(metric(0.4))
    found.over_champion.CopyFrom(metric(-0.1))
    assert [gain.status.word for gain in gains(cycle.report)] == ["better", "worse"]
    assert cycle_page(cycle).count('<svg class="plot"') == 3


def test_slices_have_a_table() -> None:
    assert "Slices" not in cycle_page(succeeded())
    shown = text_of(cycle_page(sliced(succeeded(), champion=True)))
    assert "source: news 100 0.100 0.100 0.200 [0.180, 0.220] +0.100 [+0.080, +0.120] not worse" in shown
    assert "source: mail 100 0.300 0.300 0.100 [0.080, 0.120] -0.200 [-0.220, -0.180] worse over the champion" in shown
    assert "source: 12 more values 15 too few to measure" in shown
    # Without a champion, the base model is what it is compared with.
    shown = text_of(cycle_page(sliced(succeeded(), champion=False)))
    assert "source: news 100 0.100 0.200 [0.180, 0.220] +0.100 [+0.080, +0.120] better over the base model" in shown


def test_the_loss_of_the_training_is_drawn_where_the_report_has_it() -> None:
    cycle = succeeded()
    assert "Loss while training" not in cycle_page(cycle)
    for step in range(1, 60):
        cycle.report.loss_curve.add(step=step, loss=3.0 / step)
    page = cycle_page(cycle)
    assert "Loss while training" in page
    assert 'aria-label="Loss from 3 at the first to 0.0508 at the last step"' in page


def test_the_loss_of_a_run_that_trains_now_is_drawn() -> None:
    losses = [LossPoint(step=step, loss=3 / step) for step in range(1, 40)]
    page = rendered("cycle.html", rollout=None, may_cancel=True, **facts(running(), losses))
    assert "Loss while training, so far" in page
    assert "Loss while training" not in rendered("cycle.html", rollout=None, may_cancel=True, **facts(running()))


def test_builds_that_no_gate_judged_are_shown_as_such() -> None:
    cycle = succeeded()
    del cycle.verdicts[:]
    assert {build.status.word for build in builds(cycle)} == {"not judged"}
    assert "not judged" in cycle_page(cycle)


@pytest.mark.parametrize("text", [HOSTILE, LONG, CHINESE])
def test_texts_of_records_and_models_stay_texts(text: str) -> None:
    cycle = succeeded()
    cycle.state = Cycle.STATE_FAILED
    cycle.failure.message = text
    cycle.reasons.append(text)
    cycle.stages[0].summary = text
    cycle.stages[0].resources.append(f"runs/{text}")
    cycle.dataset_version.rejected_by_reason[text] = 1
    example = cycle.report.examples[0]
    example.input = example.reference = example.base = example.tuned = text
    cycle.verdicts[0].why = text
    cycle.report.variants[0].precision = text
    cycle.report.slices.add(attribute="source", value=text, examples=3)
    assert text_of(cycle_page(cycle)).count(text) >= 10
    cycle.model_version = f"models/m/versions/{text}"
    assert text in text_of(loop_page([cycle], trigger()))


def test_a_single_build_has_no_front() -> None:
    cycle = succeeded()
    assert "Quality by speed" in cycle_page(cycle)
    del cycle.report.variants[1:]
    assert "Quality by speed" not in cycle_page(cycle)


def test_a_running_cycle_can_be_cancelled_by_who_may() -> None:
    assert "/cancel" in cycle_page(running())
    assert "/cancel" not in cycle_page(running(), may_cancel=False)
    assert "/cancel" not in cycle_page(succeeded())


def test_a_cycle_says_where_its_roll_out_stands_and_why() -> None:
    found = ModelRollout(
        name="rollouts/r",
        candidate="models/m/versions/3",
        state=ModelRollout.STATE_PENDING,
        reason=f"It waits. {HOSTILE}",
    )
    assert f"Roll-out of version 3 pending It waits. {HOSTILE}" in text_of(cycle_page(succeeded(), rollout=found))


def test_a_cycle_of_nothing_is_a_page() -> None:
    assert "Cycle of x" in text_of(cycle_page(Cycle(name="pipelines/x/cycles/y")))
