"""Who is next in the queue of a model that writes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from services.inference.triton_models import departures, turns
from services.inference.triton_models.turns import CallerPriority, TurnQueue
from services.serving.adapters import triton_tensors


@dataclass(frozen=True)
class Item:
    name: str
    turn: CallerPriority


def item(name: str, background: bool = False) -> Item:
    """Of the caller with the first letter."""
    return Item(name, CallerPriority(name[0], background))


def queue(*names: str, background: str = "") -> TurnQueue[Item]:
    made: TurnQueue[Item] = TurnQueue()
    for name in names:
        made.push(item(name))
    for name in background.split():
        made.push(item(name, background=True))
    return made


def order(made: TurnQueue[Item]) -> list[str]:
    found = []
    while made:
        first = made.first()
        popped = made.pop()
        assert popped is first
        found.append(popped.name)
    return found


def test_callers_take_turns() -> None:
    assert order(queue("a1", "a2", "a3", "b1", "c1", "c2")) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_the_background_comes_last_by_turns_as_well() -> None:
    assert order(queue("a1", "a2", background="x1 x2 a3")) == ["a1", "a2", "x1", "a3", "x2"]


def test_a_caller_who_comes_later_waits_for_one_turn_only() -> None:
    made = queue(*(f"a{number}" for number in range(100)))
    made.pop()
    made.push(item("b1"))
    assert [made.pop().name for _ in range(2)] == ["a1", "b1"]


def test_who_asks_most_makes_room() -> None:
    made = queue("a1", "a2", "a3", "b1")
    assert made.give_way(CallerPriority("c")) == item("a3")
    assert made.give_way(CallerPriority("a")) is None  # a has most itself
    assert made.give_way(CallerPriority("b")) is None  # with one more b would have as many as a
    full = queue("a1", background="x1 y1 y2")
    assert full.give_way(CallerPriority("b")) == item("y2", background=True)
    assert full.give_way(CallerPriority("a")) is not None
    assert full.give_way(CallerPriority("x", background=True)) is None
    assert queue("a1", "a2").give_way(CallerPriority("x", background=True)) is None
    assert queue("a1").give_way(CallerPriority("b")) is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())), st.sampled_from("abc"))
def test_nothing_is_lost_and_turns_are_fair(pushed: list[tuple[str, bool]], gone: str) -> None:
    made: TurnQueue[Item] = TurnQueue()
    for number, (caller, background) in enumerate(pushed):
        made.push(item(f"{caller}{number}", background))
    taken = made.take(lambda work: work.turn.caller == gone)
    assert len(made) + len(taken) == len(pushed)
    names = order(made)
    assert Counter([*names, *(work.name for work in taken)]) == Counter(f"{c}{n}" for n, (c, _) in enumerate(pushed))
    lanes = {f"{caller}{number}": background for number, (caller, background) in enumerate(pushed)}
    online = [name[0] for name in names if not lanes[name]]
    assert [lanes[name] for name in names] == sorted(lanes[name] for name in names)
    for end in range(len(online)):
        # While both wait, no one is served twice before the other.
        served, left = Counter(online[:end]), Counter(online[end:])
        if len(left) == 2:
            one, two = left
            assert abs(served[one] - served[two]) <= 1


def test_the_parameters_have_the_names_that_the_gateway_writes() -> None:
    assert (turns.CALLER, turns.BACKGROUND) == (triton_tensors.CALLER, triton_tensors.BACKGROUND)
    assert (departures.REQUEST, departures.GONE) == (triton_tensors.REQUEST, triton_tensors.GONE)
    assert CallerPriority.of("") == CallerPriority.of("{}") == CallerPriority()
    assert CallerPriority.of(f'{{"{turns.CALLER}": "k", "{turns.BACKGROUND}": true}}') == CallerPriority(
        "k", background=True
    )
