"""Statistics of experiments: published values, and simulated experiments that are looked at all the time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.pipeline.engine.group_sequential import LOOKS, bound_at, boundaries, due_look, obrien_fleming, pocock
from services.pipeline.engine.sequential import (
    MIN_UNITS,
    MeanDifference,
    RateGuard,
    Sample,
    normal_mixture,
    ratio_mismatch,
)
from tests.examples import examples

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


@given(VALUES, VALUES)
@examples(100)
def test_samples_add_up_to_the_sample_of_all(first: list[float], second: list[float]) -> None:
    one_by_one = Sample()
    for value in first:
        one_by_one = one_by_one.add(value)
    both = one_by_one + sum((Sample(1, value) for value in second), Sample())
    assert both.count == len(first) + len(second)
    assert both.mean == pytest.approx(statistics.fmean(first + second), abs=1e-6)
    assert both.variance == pytest.approx(statistics.variance(first + second), rel=1e-6, abs=1e-3)


def arms(rates: Sequence[float], count: int) -> MeanDifference:
    """Binary values at these rates."""
    champion, candidate = (Sample(count, rate, count * rate * (1 - rate)) for rate in rates)
    return MeanDifference(champion, candidate)


def test_a_difference_shows_with_its_interval_once_there_are_enough_units() -> None:
    few, many = arms((0.5, 0.9), MIN_UNITS - 1), arms((0.5, 0.9), MIN_UNITS)
    assert few.interval(0.05) == (-math.inf, math.inf)
    low, high = many.interval(0.05)
    assert 0.2 < low < many.estimate < high < 0.6
    assert low < many.lower(0.05) < many.estimate < many.upper(0.05) < high
    assert many.lower(0.01) < many.lower(0.05)


def test_the_bound_is_narrowest_where_it_is_asked_to_be_and_wider_than_that_of_one_look() -> None:
    widths = {at: normal_mixture(2000, 0.05, at, one_sided=False) for at in (200, 2000, 20_000)}
    assert min(widths, key=lambda at: widths[at]) == 2000
    # Waudby-Smith et al. (2024), figure 2: about 1.5 times a fixed interval at its narrowest.
    assert 2.8 < widths[2000] < 3.1


@pytest.mark.parametrize("rate", [0.5, 0.05])
def test_equal_arms_are_rarely_found_different_however_often_one_looks(rate: float) -> None:
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(200):
        values = rng.random((2, 4000)) < rate
        sums = values.cumsum(axis=1)
        for count in range(MIN_UNITS, 4001, 50):
            if arms((sums[:, count - 1] / count).tolist(), count).lower(0.05) > 0:
                wrong += 1
                break
    assert wrong <= 10  # 5 % of 200


def test_a_better_arm_is_found() -> None:
    rng = np.random.default_rng(2)
    sums = (rng.random((2, 3000)) < np.array([[0.5], [0.6]])).cumsum(axis=1)
    bounds = [arms((sums[:, count - 1] / count).tolist(), count).lower(0.05) for count in range(MIN_UNITS, 3001, 100)]
    assert bounds[-1] > 0


def test_a_rate_above_its_limit_raises_the_alarm_soon_and_one_within_it_seldom() -> None:
    guard, rng = RateGuard(0.05), np.random.default_rng(3)
    assert guard.is_exceeded(4, 4, 0.01)
    assert not guard.is_exceeded(1, 1, 0.01)
    assert not guard.is_exceeded(0, 1000, 0.01)
    alarms = 0
    for _ in range(300):
        hits = (rng.random(500) < 0.05).cumsum().tolist()
        alarms += any(guard.is_exceeded(found, at, 0.05) for at, found in enumerate(hits, 1))
    assert alarms <= 15  # 5 % of 300
    with pytest.raises(ValueError, match="between 0 and 1"):
        RateGuard(1.0)


@given(st.integers(1, 500), st.data())
@examples(50)
def test_evidence_has_mean_one_at_the_limit(count: int, data: st.DataObject) -> None:
    """An e-value by its definition: the mean over all outcomes, each with its probability at the limit."""
    limit = data.draw(st.sampled_from([0.01, 0.05, 0.5]))
    guard = RateGuard(limit)
    chance = [
        math.lgamma(count + 1)
        - math.lgamma(hits + 1)
        - math.lgamma(count - hits + 1)
        + hits * math.log(limit)
        + (count - hits) * math.log(1 - limit)
        for hits in range(count + 1)
    ]
    mean = sum(math.exp(log + guard.log_evidence(hits, count)) for hits, log in enumerate(chance))
    assert mean == pytest.approx(1, abs=1e-6)


def test_arms_that_get_another_share_than_planned_are_found() -> None:
    plan = {"a": 0.7, "b": 0.3}
    assert ratio_mismatch({"a": 0, "b": 0}, plan) == 1
    assert ratio_mismatch({"a": 700, "b": 300}, plan) == 1
    assert ratio_mismatch({"a": 720, "b": 280}, plan) > 0.05
    assert ratio_mismatch({"a": 7600, "b": 2400}, plan) < 1e-6
    with pytest.raises(ValueError, match="do not fit"):
        ratio_mismatch({"a": 1}, plan)


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        # Lan and DeMets' boundaries for five equal looks at one-sided 0.025, as in Proschan, Lan and Wittes (2006).
        (obrien_fleming, [4.877, 3.357, 2.680, 2.290, 2.031]),
        (pocock, [2.438, 2.427, 2.410, 2.397, 2.386]),
    ],
)
def test_boundaries_are_the_published_ones(spending: object, published: list[float]) -> None:
    found = boundaries([0.2, 0.4, 0.6, 0.8, 1.0], 0.025, spending)  # type: ignore[arg-type]
    assert found == pytest.approx(published, abs=2e-3)


@pytest.mark.parametrize("shares", [[], [0.5], [0.5, 0.5, 1.0], [0.0, 1.0]])
def test_looks_must_rise_to_the_whole(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="rise"):
        boundaries(shares, 0.05)


def test_each_planned_look_is_due_once_however_late_it_is() -> None:
    looks: list[float] = []
    for share in (0.1, 0.25, 0.3, 0.39, 0.7, 0.79, 0.8, 1.3, 1.4):
        if (look := due_look(looks, share)) is not None:
            looks.append(look)
    # One late look takes the place of two planned ones.
    assert looks == [0.25, 0.7, 0.8, 1.0]


def test_bounds_depend_on_the_looks_until_then_only() -> None:
    shares = (0.21, 0.4, 0.62, 0.8, 1.0)
    at_each = [bound_at(shares[: number + 1], 0.05) for number in range(LOOKS)]
    assert at_each == pytest.approx(boundaries(shares, 0.05), abs=1e-6)
    assert at_each == sorted(at_each, reverse=True)


def decided_at(rng: np.random.Generator, rates: tuple[float, float], users: int) -> int | None:
    """Users of each arm at which planned looks find the candidate better; None if they never do."""
    sums = (rng.random((2, users)) < np.array(rates)[:, None]).cumsum(axis=1)
    looks: list[float] = []
    for count in range(users // 50, users + 1, users // 50):
        if (look := due_look(looks, count / users)) is not None:
            looks.append(look)
            if arms((sums[:, count - 1] / count).tolist(), count).z() > bound_at(tuple(looks), 0.05):
                return count
    return None


def test_planned_looks_seldom_promote_an_equal_version_and_need_fewer_users_than_a_look_at_any_time() -> None:
    rng = np.random.default_rng(11)
    equal = [decided_at(rng, (0.5, 0.5), 2000) for _ in range(400)]
    assert sum(count is not None for count in equal) <= 30  # 5 % of 400, and three standard deviations
    better = [decided_at(rng, (0.5, 0.55), 2000) for _ in range(100)]
    planned = sum(count is not None for count in better)
    sums = (rng.random((100, 2, 2000)) < np.array((0.5, 0.55))[:, None]).cumsum(axis=2)
    any_time = sum(
        any(arms((sums[each, :, n - 1] / n).tolist(), n).lower(0.05) > 0 for n in range(MIN_UNITS, 2001, 50))
        for each in range(100)
    )
    assert planned > any_time + 10


def test_a_difference_without_spread_is_as_clear_as_can_be() -> None:
    same = Sample(300, 1.0, 0.0)
    assert MeanDifference(Sample(300, 0.0, 0.0), same).z() == math.inf
    assert MeanDifference(same, same).z() == 0.0
    assert MeanDifference(Sample(), same).z(0.1) == 0.0
