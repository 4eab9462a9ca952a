"""How many requests wait for a model, whose, and when another may come."""

from __future__ import annotations

import pytest

from services.serving.adapters.waiting import Waiting


def filled(**counts: int) -> Waiting:
    waiting = Waiting()
    for caller, count in counts.items():
        for _ in range(count):
            assert waiting.refused_for_s(caller, 8) is None
            waiting.enter(caller)
    return waiting


def test_the_time_to_come_again_is_that_of_half_the_queue() -> None:
    waiting = Waiting()
    for _ in range(100):
        waiting.enter("a")
    for second in range(1, 61):  # one ends each second
        waiting.leave("a", 0.0, float(second))
        waiting.enter("a")
    assert waiting.refused_for_s("a", 100) == pytest.approx(50, rel=0.02)
    # Four times as fast.
    now = 60.0
    for _ in range(60):
        now += 0.25
        waiting.leave("a", 0.0, now)
        waiting.enter("a")
    assert waiting.refused_for_s("a", 100) == pytest.approx(12.5, rel=0.02)


def test_a_pause_without_requests_says_nothing_of_the_rate() -> None:
    waiting = Waiting()
    for at in (0.0, 1000.0, 5000.0):
        waiting.enter("a")
        waiting.leave("a", at, at + 0.5)
    for _ in range(8):
        waiting.enter("a")
    assert waiting.refused_for_s("a", 8) == pytest.approx(0.5 * 8 / 2)


def test_one_who_asks_much_keeps_no_one_out() -> None:
    waiting = filled(greedy=8)
    assert waiting.refused_for_s("greedy", 8) is not None
    for _ in range(4):  # half of it is the fair share of two
        assert waiting.refused_for_s("other", 8) is None
        waiting.enter("other")
    assert waiting.refused_for_s("other", 8) is not None
    assert waiting.refused_for_s("third", 8) is None


def test_there_are_never_more_than_twice_as_many() -> None:
    waiting = filled(greedy=8)
    for number in range(100):
        if waiting.refused_for_s(f"k{number}", 8) is None:
            waiting.enter(f"k{number}")
    assert waiting.count <= 16


def test_who_left_has_no_share() -> None:
    waiting = filled(a=4, b=4)
    for _ in range(4):
        waiting.leave("b", 0.0, 1.0)
        waiting.enter("a")
    assert waiting.refused_for_s("a", 8) is not None
    waiting.leave("a", 0.0, 1.0)
    assert waiting.refused_for_s("a", 8) is None
