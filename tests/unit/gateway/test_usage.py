"""What keys use is one number in all processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.keys import usage
from gateway.keys.usage import UsageTable, tokens_spent


def test_two_processes_see_one_number(tmp_path: Path) -> None:
    one, two = (UsageTable(tmp_path / "usage", number, 2) for number in (1, 2))
    with one.of("a") as use:
        use.tokens, use.filled_at, use.mean_s = 3.0, 7.0, 0.5
        use.add_concurrent(2)
    with two.of("a") as use:
        assert (use.tokens, use.filled_at, use.mean_s, use.concurrent) == (3.0, 7.0, 0.5, 2)
        use.add_concurrent(1)
    with one.of("a") as use:
        assert use.concurrent == 3
    with one.of("b") as use:
        assert use.concurrent == 0


def test_a_process_that_starts_again_forgets_its_own_requests_only(tmp_path: Path) -> None:
    one, two = (UsageTable(tmp_path / "usage", number, 2) for number in (1, 2))
    for table in (one, two):
        with table.of("a") as use:
            use.add_concurrent(1)
    with UsageTable(tmp_path / "usage", 2, 2).of("a") as use:
        assert use.concurrent == 1


def test_the_key_unused_for_longest_loses_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_SLOTS", 3)
    one, two = (UsageTable(tmp_path / "usage", number, 2) for number in (1, 2))
    for at, name in enumerate(("busy", "old", "new")):
        with one.of(name) as use:
            use.filled_at, use.tokens = float(at), 1.0
            use.add_concurrent(1 if name == "busy" else 0)
    with two.of("another") as use:
        use.filled_at = 9.0
    with one.of("busy") as use:
        assert (use.concurrent, use.tokens) == (1, 1.0)
    with one.of("new") as use:
        assert use.tokens == 1.0
    with one.of("another") as use:
        assert use.filled_at == 9.0
    with one.of("old") as use:  # was forgotten
        assert use.tokens == float("inf")


_SPENDER = """
import sys
from pathlib import Path
from gateway.keys.usage import UsageTable
table = UsageTable(Path(sys.argv[1]), int(sys.argv[2]), 4)
for _ in range(20_000):
    with table.of("a") as use:
        use.spend(7, 3)
    print(3, flush=True)
"""


def test_tokens_are_counted_exactly_by_processes_that_are_killed(tmp_path: Path) -> None:
    """What a process has counted stays; of the one that is killed, at most what it was counting may be added."""
    file = tmp_path / "usage"
    command = (sys.executable, "-c", _SPENDER, str(file))
    spenders = [subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE) for number in (1, 2, 3, 4)]
    said = []
    for at, spender in enumerate(spenders):
        assert spender.stdout is not None
        if at == 0:
            assert spender.stdout.readline() == b"3\n"
            spender.kill()
        said.append(len(spender.stdout.read().splitlines()) + (at == 0))
        spender.wait()
    assert said[1:] == [20_000] * 3
    counted = tokens_spent(file, 7)["a"]
    assert 3 * sum(said) <= counted <= 3 * (sum(said) + 1)
    assert tokens_spent(file, 8) == {}
    with UsageTable(file, 1, 4).of("a") as use:
        assert (use.spent(7), use.spent(8)) == (counted, 0)
