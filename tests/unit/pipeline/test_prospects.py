"""Comparisons that are given up for a newer version: how many of them would have been won."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from services.pipeline.domain.rollout import Rollout
from services.pipeline.domain.rollout_plan import Comparison, PlannedStep, RolloutPlan, StepKind
from services.pipeline.engine.group_sequential import bound_at, due_look
from services.pipeline.engine.prospects import chance_to_win
from services.pipeline.engine.sequential import MeanDifference, Sample
from tests.unit.pipeline.rollout_world import CYCLE, MODEL, longer

NOW = datetime(2026, 11, 28, tzinfo=UTC)


def compared(**comparison: float) -> Rollout:
    plan = longer(RolloutPlan((PlannedStep(StepKind.AB, 0.5),)), **comparison)
    draft = Rollout("r", "reviews", CYCLE, MODEL, f"{MODEL}/versions/2", "runs/r", plan, NOW, NOW)
    return draft.begun(f"{MODEL}/versions/1")


def arms(rates: tuple[float, float], counts: tuple[int, int]) -> MeanDifference:
    """Binary values at these rates."""
    champion, candidate = (
        Sample(count, rate, count * rate * (1 - rate)) for rate, count in zip(rates, counts, strict=True)
    )
    return MeanDifference(champion, candidate)


def test_the_chance_follows_the_figures_and_the_time_that_is_left() -> None:
    chances = [chance_to_win(compared(), arms((0.5, rate), (1000, 1000)), 2) for rate in (0.45, 0.5, 0.55, 0.6)]
    assert chances == sorted(chances)
    assert chances[0] < 0.01
    assert chances[-1] > 0.9
    early, late = (chance_to_win(compared(), arms((0.5, 0.5), (1000, 1000)), grown) for grown in (5, 1.1))
    assert late < 0.1 < early
    # At the end there is nothing left to come.
    assert chance_to_win(compared(), arms((0.5, 0.52), (1000, 1000)), 1) == 0
    # A candidate that may be a little worse has more of a chance.
    allowed = compared(margin=0.1)
    assert chance_to_win(allowed, arms((0.5, 0.5), (1000, 1000)), 1.5) > 0.5


@pytest.mark.parametrize(
    ("counts", "grown", "chance"),
    [((0, 0), 10, 0.0), ((10, 10), 10, 0.0), ((500, 90), 2, 0.0), ((500, 90), 3, 1.0), ((199, 199), 2, 1.0)],
)
def test_too_few_users_are_enough_only_if_there_will_be_more(
    counts: tuple[int, int], grown: float, chance: float
) -> None:
    assert chance_to_win(compared(), arms((0.5, 0.9), counts), grown) == chance


def test_a_maximum_of_users_is_the_end_and_looks_that_are_not_reached_decide_nothing() -> None:
    known = compared(max_users=4000)
    pair = arms((0.5, 0.52), (500, 500))
    assert chance_to_win(known, pair, 4) == chance_to_win(known, pair, 100)
    assert 0 < chance_to_win(known, pair, 2) < chance_to_win(known, pair, 4)
    # One look at a quarter is over, and no second one comes in time.
    assert chance_to_win(known.looked(0.25), pair, 1.5) == 0
    assert chance_to_win(known.looked(0.25), arms((0.5, 0.5), (2000, 2000)), 5) == 0


@pytest.mark.parametrize("max_users", [0, 4000])
@pytest.mark.parametrize(("advantage", "given_up"), [(0.0, 0.75), (0.08, 0.1)])
def test_few_of_those_that_are_given_up_would_have_been_won(max_users: int, advantage: float, given_up: float) -> None:
    rng, alpha = np.random.default_rng(5), Comparison().alpha
    ended = lost_by_it = 0
    trials, users, look_every = 300, 2000, 100
    for _ in range(trials):
        liked = (rng.random((2, users)) < np.array([[0.5], [0.5 + advantage]])).cumsum(axis=1)
        rollout, was_ended, won = compared(max_users=max_users), False, False
        for count in range(look_every, users + 1, look_every):
            pair = arms((liked[0, count - 1] / count, liked[1, count - 1] / count), (count, count))
            if max_users:
                if (look := due_look(rollout.record.looks, 2 * count / max_users)) is not None:
                    rollout = rollout.looked(look)
                    won = won or pair.z() > bound_at(rollout.record.looks, alpha)
            else:
                won = won or pair.lower(alpha) > 0
            if won:
                break
            was_ended = was_ended or chance_to_win(rollout, pair, users / count) <= 0.1
        ended += was_ended
        lost_by_it += was_ended and won
    # Of equal versions most are given up; of better ones few, and few of all would have been won.
    assert ended >= given_up * trials if not advantage else ended <= given_up * trials
    assert lost_by_it <= 0.1 * max(ended, 30)
