"""The console's pages of roll-outs and of the audit trail, from real messages."""

from __future__ import annotations

from typing import Any

import pytest
from tidemill.pipeline.v1.cycle_pb2 import AbTest
from tidemill.pipeline.v1.rollout_pb2 import AuditEntry, ModelRollout, RolloutStep

from gateway.console.pages.rollouts import advantage, facts, orders_for, rules_of, step_word, steps_of
from services.kit.errors import UnavailableError
from tests.integration.gateway.fake_peers import rollout
from tests.unit.gateway.console_pages import CHINESE, HOSTILE, LONG, rendered, text_of

RUNNING, WAITS = ModelRollout.STATE_RUNNING, ModelRollout.STATE_AWAITING_APPROVAL


def rollout_page(found: ModelRollout, entries: tuple[AuditEntry, ...] = (), **more: Any) -> str:
    return rendered("rollout.html", **{"entries": entries, "trail_error": None, **facts(found), **more})


@pytest.mark.parametrize(
    ("state", "frozen", "orders"),
    [
        (RUNNING, False, ["freeze", "force", "roll-back"]),
        (RUNNING, True, ["resume", "force", "roll-back"]),
        (WAITS, False, ["approve", "freeze", "force", "roll-back"]),
        (ModelRollout.STATE_PENDING, False, ["freeze", "force", "roll-back"]),
        (ModelRollout.STATE_PROMOTED, True, []),
        (ModelRollout.STATE_ROLLED_BACK, False, []),
    ],
)
def test_what_can_be_ordered_depends_on_the_state(
    state: ModelRollout.State.ValueType, frozen: bool, orders: list[str]
) -> None:
    found = ModelRollout(name="rollouts/r", state=state, frozen=frozen)
    assert orders_for(found) == orders
    page = rollout_page(found)
    assert [
        name for name in ("approve", "freeze", "resume", "force", "roll-back") if f"rollouts/r/{name}" in page
    ] == orders


def test_a_step_is_done_now_or_pending() -> None:
    found = rollout()
    found.steps[1].start_time.FromSeconds(1_790_000_000)
    found.steps.add(kind=RolloutStep.KIND_CANARY, share=0.05)
    assert [(each.word, each.status.word) for each in steps_of(found)] == [
        ("shadow", "done"),
        ("comparison 50 %", "now"),
        ("canary 5 %", "pending"),
    ]
    found.state = ModelRollout.STATE_ROLLED_BACK
    assert steps_of(found)[1].status.word == "ended"
    assert step_word(RolloutStep(kind=RolloutStep.KIND_CANARY, share=0.01)) == "canary 1 %"


def test_the_advantage_is_coloured_by_what_its_interval_says() -> None:
    found = rollout()
    for low, high, metric, tone in (
        (-0.05, 0.25, AbTest.METRIC_ACCEPTED, "warn"),
        (0.05, 0.25, AbTest.METRIC_ACCEPTED, "good"),
        (-0.25, -0.05, AbTest.METRIC_RATING, "bad"),
        (-0.25, -0.05, AbTest.METRIC_LATENCY, "good"),
        (0.05, 0.25, AbTest.METRIC_LATENCY, "bad"),
    ):
        found.lower, found.upper, found.plan.ab.metric = low, high, metric
        assert f'class="mark-row {tone}"' in advantage(found)
    found.ClearField("difference")
    assert advantage(found) == ""
    assert "Advantage of the candidate" not in rollout_page(found)


def test_how_a_comparison_went_is_drawn_from_the_second_estimate_on() -> None:
    found = rollout()
    found.estimates.add(judged_users=40, difference=0.2, lower=-0.4, upper=0.8)
    assert "How it went" not in rollout_page(found)
    found.estimates.add(judged_users=400, difference=0.1, lower=-0.05, upper=0.25)
    page = rollout_page(found)
    assert 'aria-label="Advantage +0.100, between -0.050 and +0.250"' in page
    assert page.count('class="band"') == 1


def test_the_plan_says_what_decides() -> None:
    found = rollout()
    assert rules_of(found) == []
    found.plan.ab.metric, found.plan.ab.margin, found.plan.ab.alpha = AbTest.METRIC_RATING, 0.05, 0.05
    rails = found.plan.guard_rails
    rails.max_error_rate, rails.max_refusal_rate, rails.max_latency_ratio = 0.05, 1.0, 2.0
    found.plan.approve_first = True
    shown = text_of(rollout_page(found))
    assert (
        "mean rating, worse by 0.05 at most; a version that is not better is promoted in 5% of cases at most" in shown
    )
    assert "rolled back when more than 5.0% of the calls fail, or its p99 latency is 2 times the champion's" in shown
    assert "wait for a person" in shown


def test_both_versions_are_compared() -> None:
    shown = text_of(rollout_page(rollout()))
    assert "Version 4 of reviews running" in shown
    assert "3 champion 50.0% 310 0 0 0 ms 300 0" in shown
    assert "4 candidate 50.0% 290 0 0 0 ms 280 250 0.750" in shown
    assert "+0.1000, between -0.0500 and +0.2500" in shown


@pytest.mark.parametrize("text", [HOSTILE, LONG, CHINESE])
def test_reasons_of_people_stay_texts(text: str) -> None:
    found = rollout()
    found.reason = found.steps[0].reason = text
    entry = AuditEntry(actor=text, action=text, resource=f"models/{text}", reason=text, facts={text: text})
    assert text_of(rollout_page(found, (entry,))).count(text) == 7
    values = {"entries": [entry], "resource": text, "older": text, "after": text}
    assert text_of(rendered("audit.html", **values)).count(text) == 6
    assert text_of(rendered("rollouts.html", rollouts=[(found, text)], older="", after="")).count(text) == 2


def test_a_trail_that_cannot_be_read_leaves_the_rest() -> None:
    shown = text_of(rollout_page(rollout(), trail_error=UnavailableError("The pipeline service does not answer.")))
    assert "The pipeline service does not answer." in shown
    assert "4 candidate" in shown


def test_nothing_is_a_page() -> None:
    assert "no roll-outs yet" in rendered("rollouts.html", rollouts=[], older="", after="")
    assert "The audit trail is empty." in rendered("audit.html", entries=[], resource="", older="", after="")
    assert "Introduced beside no other version" in text_of(rollout_page(ModelRollout(name="rollouts/r")))
