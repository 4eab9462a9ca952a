"""Who gets which version, and how many change hands when a route changes."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from services.inference.domain.route import ModelRoute, RouteEntry
from services.kit.errors import InvalidArgumentError
from services.serving.domain.route import SLOTS, Role, slot_of

SERVING, CANARY, SHADOW, CANDIDATE = Role.SERVING, Role.CANARY, Role.SHADOW, Role.CANDIDATE


def owners(route: ModelRoute) -> list[int]:
    """The version of each slot; each has exactly one."""
    found = [0] * SLOTS
    for entry in route.entries:
        for begin, end in entry.users:
            assert found[begin:end] == [0] * (end - begin)
            found[begin:end] = [entry.number] * (end - begin)
    assert 0 not in found
    return found


def moved(before: ModelRoute, after: ModelRoute) -> int:
    return sum(one != other for one, other in zip(owners(before), owners(after), strict=True))


def route(**weights: int) -> ModelRoute:
    return changed(ModelRoute("m"), **weights)


def changed(before: ModelRoute, **weights: int) -> ModelRoute:
    """`v3=70, v4=30`: the first one serves."""
    entries = [
        RouteEntry(int(name[1:]), CANARY if at else SERVING, weight)
        for at, (name, weight) in enumerate(weights.items())
    ]
    return before.set_to(entries, {})


def test_weights_are_shares_of_the_users() -> None:
    slots = owners(route(v3=70, v4=30))
    assert (slots.count(3), slots.count(4)) == (7000, 3000)
    slots = owners(route(v1=1, v2=1, v3=1))
    assert sorted(slots.count(number) for number in (1, 2, 3)) == [3333, 3333, 3334]


@pytest.mark.parametrize(
    ("before", "after", "least"),
    [
        ({"v3": 70, "v4": 30}, {"v3": 60, "v4": 40}, 1000),
        ({"v3": 70, "v4": 30}, {"v3": 40, "v4": 30, "v5": 30}, 3000),
        ({"v3": 40, "v4": 30, "v5": 30}, {"v3": 70, "v4": 30}, 3000),
        ({"v3": 70, "v4": 30}, {"v4": 30, "v3": 70}, 0),
        ({"v3": 70, "v4": 30}, {"v3": 7, "v4": 3}, 0),
    ],
)
def test_a_change_of_weights_moves_as_few_users_as_the_shares_differ_by(
    before: dict[str, int], after: dict[str, int], least: int
) -> None:
    first = route(**before)
    assert moved(first, changed(first, **after)) == least


def test_many_changes_leave_each_slot_to_one_version() -> None:
    dice = random.Random(7)
    now = route(v1=100)
    for _ in range(200):
        numbers = dice.sample(range(1, 7), dice.randint(1, 4))
        weights = {f"v{number}": dice.randint(1, 100) for number in numbers}
        before, now = now, changed(now, **weights)
        one, other = owners(before), owners(now)
        gained = sum(max(0, other.count(number) - one.count(number)) for number in range(1, 7))
        assert moved(before, now) == gained


def test_a_publication_takes_the_users_of_the_serving_version_and_no_others() -> None:
    before = route(v3=70, v4=30)
    after = before.served_by(5)
    assert moved(before, after) == 7000
    assert [(e.number, e.role, e.weight) for e in after.entries] == [(5, SERVING, 70), (4, CANARY, 30)]


def test_a_promoted_canary_keeps_its_users_and_gets_those_of_the_version_before() -> None:
    before = route(v3=60, v4=30, v5=10)
    after = before.served_by(4)
    assert moved(before, after) == 6000
    assert [(e.number, e.weight) for e in after.entries] == [(4, 90), (5, 10)]


def test_an_alias_keeps_the_version_before_loaded() -> None:
    before = ModelRoute("m").set_to([RouteEntry(3, SERVING, 100)], {"stable": 3})
    after = before.served_by(4)
    assert [(e.number, e.role) for e in after.entries] == [(4, SERVING), (3, CANDIDATE)]
    assert after.aliases == {"stable": 3}
    assert after.without(3).aliases == {}


def test_a_version_that_leaves_gives_its_users_to_the_others() -> None:
    before = route(v3=50, v4=25, v5=25)
    assert moved(before, before.without(5)) == 2500


@pytest.mark.parametrize(
    ("entries", "aliases", "field"),
    [
        ([RouteEntry(1, SERVING, 0)], {}, "entries[0].weight"),
        ([RouteEntry(1, SERVING, 1), RouteEntry(2, SERVING, 1)], {}, "entries[1].role"),
        ([RouteEntry(1, SERVING, 1), RouteEntry(1, CANARY, 1)], {}, "entries[1].version"),
        ([RouteEntry(1, CANARY, 1)], {}, "entries"),
        ([RouteEntry(1, SERVING, 1), RouteEntry(2, SHADOW, 1)], {}, "entries[1].weight"),
        ([RouteEntry(1, SERVING, 1)], {"champion": 1}, "aliases[champion]"),
        ([RouteEntry(1, SERVING, 1)], {"stable": 2}, "aliases[stable]"),
    ],
)
def test_an_invalid_route_names_its_field(entries: list[RouteEntry], aliases: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ModelRoute("m").set_to(entries, aliases)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_a_user_has_one_slot_in_every_process() -> None:
    code = "from services.serving.domain.route import slot_of; print(slot_of('reviews', 'Zoë'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == slot_of("reviews", "Zoë")
    # Evenly, and not alike for every model.
    slots = [slot_of("reviews", f"user-{number}") for number in range(5000)]
    assert 0.67 < sum(slot < 0.7 * SLOTS for slot in slots) / 5000 < 0.73
    assert slots != [slot_of("headlines", f"user-{number}") for number in range(5000)]
