"""Tests wait by `tests/waiting.py`: a loop of their own that polls is refused, with the line where it stands."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import eventually, eventually_is, wait_for, wait_until

ROOT = Path(__file__).resolve().parents[2]
HOME = "tests/waiting.py"

# Loops that sleep and wait for nothing: each paces what it does.
PACED = {
    "tests/contract/bus/test_broker_away.py": "publishes for longer than a producer keeps a message",
    "tests/faults/test_hostile_patterns.py": "makes calls while others are being answered",
    "tests/faults/test_load.py": "swaps versions at a rate",
    "tests/faults/test_mesh_authority.py": "makes calls until it is cancelled",
    "tests/integration/pipeline/test_triggers.py": "kills a service at another moment each time",
    "tests/integration/telemetry/emitter.py": "spreads its lines over time",
    "tests/unit/gateway/test_batch_runner.py": "cancels a task at another step each time",
    "tests/unit/gateway/test_messages.py": "lets the event loop run its tasks",
}


def polls(source: str) -> list[int]:
    """The lines of loops that look again and again until something has come."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.While) and not _runs_until_stopped(node) and (_sleeps(node) or _only_looks(node)))
        or (isinstance(node, ast.For) and _counts(node) and _sleeps(node))
    ]


def _runs_until_stopped(loop: ast.While) -> bool:
    """`while not stop.is_set()` and a generator are loops of a server or of a load."""
    return ast.unparse(loop.test).endswith(".is_set()") or any(isinstance(node, ast.Yield) for node in _own(loop))


def _sleeps(loop: ast.While | ast.For) -> bool:
    return any(isinstance(node, ast.Call) and ast.unparse(node.func).endswith("sleep") for node in _own(loop))


def _only_looks(loop: ast.While) -> bool:
    """`while not done(): pass`; `while runner.step(): pass` works, and `connection.recv` reads."""
    calls = [ast.unparse(node.func) for node in ast.walk(loop.test) if isinstance(node, ast.Call)]
    looks = bool(calls) and not any(call.endswith((".step", ".recv")) for call in calls)
    return looks and all(isinstance(statement, ast.Assert | ast.Pass) for statement in loop.body)


def _counts(loop: ast.For) -> bool:
    return isinstance(loop.iter, ast.Call) and ast.unparse(loop.iter.func) == "range"


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """What a loop itself does, without the functions that are defined in it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _own(child)


def test_tests_wait_by_one_module() -> None:
    files = {str(path.relative_to(ROOT)): path for path in (ROOT / "tests").rglob("*.py")}
    assert len(files) > 300
    found = {name: lines for name, path in files.items() if (lines := polls(path.read_text("utf-8")))}
    assert found.pop(HOME)
    assert sorted(found) == sorted(PACED), f"wait by {HOME}: {found}"


@pytest.mark.parametrize(
    "loop",
    [
        "while not done():\n    time.sleep(0.1)",
        "while True:\n    if done():\n        break\n    await asyncio.sleep(0.1)",
        "for _ in range(50):\n    if done():\n        break\n    sleep(0.1)",
        "while not done():\n    pass",
        "while not done():\n    assert time.monotonic() < end",
    ],
)
def test_a_loop_that_polls_is_found(loop: str) -> None:
    assert polls(loop) == [1]


@pytest.mark.parametrize(
    "loop",
    [
        "while not stop.is_set():\n    call()\n    time.sleep(0.1)",
        "while True:\n    yield 1\n    await asyncio.sleep(0.1)",
        "while runner.step():\n    pass",
        "for number in numbers:\n    call(number)\n    time.sleep(0.1)",
        "while queue:\n    queue.pop()",
    ],
)
def test_a_loop_that_works_is_not_found(loop: str) -> None:
    assert polls(loop) == []


def _broken() -> None:
    raise RuntimeError("the process has ended")


async def test_what_must_hold_meanwhile_ends_a_wait_at_once() -> None:
    with pytest.raises(RuntimeError, match="has ended"):
        wait_until(lambda: None, meanwhile=_broken)
    with pytest.raises(RuntimeError, match="has ended"):
        await eventually(lambda: None, meanwhile=_broken)


async def test_a_state_that_does_not_come_fails_with_what_was_seen() -> None:
    async def read() -> int:
        return 3

    with pytest.raises(AssertionError, match=r"a fourth did not come within 0 s; last seen: .*3"):
        wait_for(lambda: 3, lambda found: found > 3, "a fourth", 0)
    with pytest.raises(AssertionError, match="a fourth did not come within 0 s; last seen: 3"):
        await eventually_is(read, lambda found: found > 3, "a fourth", 0)
