"""No set of texts makes an operator slow: twice as many texts take twice the steps, also where all are alike.

Counted are the instructions that Python executes, which are the same on every machine; a time is not asserted.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final

import pytest

from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.engine.contamination import measure_contamination
from services.cleaning.engine.operator import SetOperator, SetRecord
from services.cleaning.engine.operators import near_dedup
from services.cleaning.engine.registry import own_registry

REGISTRY = own_registry()
COUNT: Final = 150
"""Above the number of others that a text is compared with, from which on linear and quadratic differ."""
MAX_GROWTH: Final = 2.4
"""For twice as many texts; a quadratic operator has almost 4."""

WORDS: Final = [f"word{number}" for number in range(5000)]


def from_template(number: int) -> str:
    """Texts that share most of their words, and are not near duplicates: many candidates, none of which is one."""
    drawn = random.Random(number)
    return " ".join(drawn.choice(WORDS) if place % 12 == 11 else f"fixed{place}" for place in range(96))


def from_chinese_template(number: int) -> str:
    return (
        f"尊敬的客户，您的订单{number * 7919}已经发货，预计{number % 28 + 1}日送达，如有问题请联系客服，祝您生活愉快。"
        * 2
    )


def distinct(number: int) -> str:
    drawn = random.Random(number)
    return " ".join(drawn.choice(WORDS) for _ in range(60))


def equal(number: int) -> str:
    return "the same text each time, word for word, whoever sends it"


def in_pairs(number: int) -> str:
    return distinct(number // 2)


SETS: Final[Sequence[Callable[[int], str]]] = (from_template, from_chinese_template, distinct, equal, in_pairs)


def steps(run: Callable[[], object]) -> int:
    """The number of instructions that Python executes in a call, those of nested calls included."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def growth(operator: SetOperator[Any], made: Callable[[int], str]) -> float:
    """How many times as many steps twice as many texts take."""

    def judge(count: int) -> Callable[[], object]:
        records = [SetRecord(str(number), made(number), {"label": str(number % 3)}) for number in range(count)]
        return lambda: operator.judge(records)

    operator.judge([SetRecord("a", made(0), {}), SetRecord("b", made(1), {})])  # tables that are made once
    return steps(judge(2 * COUNT)) / steps(judge(COUNT))


SET_OPERATORS: Final = [name for name in REGISTRY.names if issubclass(REGISTRY.operator_type(name), SetOperator)]


@pytest.mark.parametrize("made", SETS, ids=lambda made: made.__name__)
@pytest.mark.parametrize("name", SET_OPERATORS)
def test_twice_as_many_texts_take_twice_the_steps(name: str, made: Callable[[int], str]) -> None:
    operator = REGISTRY.build(OperatorSpec(name, {}), 0)
    assert isinstance(operator, SetOperator)
    assert growth(operator, made) <= MAX_GROWTH


@pytest.mark.parametrize("made", SETS, ids=lambda made: made.__name__)
def test_so_does_the_comparison_of_training_and_hold_out(made: Callable[[int], str]) -> None:
    def measure(count: int) -> Callable[[], object]:
        texts = [made(number) for number in range(count)]
        return lambda: measure_contamination(texts[: count // 2], texts[count // 2 :])

    measure(4)()
    assert steps(measure(2 * COUNT)) / steps(measure(COUNT)) <= MAX_GROWTH


def test_a_search_without_a_limit_of_candidates_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_dedup, "_MAX_CANDIDATES", 1_000_000)
    operator = REGISTRY.build(OperatorSpec("near_dedup", {}), 0)
    assert isinstance(operator, SetOperator)
    assert growth(operator, from_template) > MAX_GROWTH
