"""Ports: the former one, else the usual one, else a free one; never one that another mesh reserved."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from infra.stack.ports import PortAllocator, is_free


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield int(server.getsockname()[1])


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_a_port_that_someone_listens_on_is_not_free(listening: int) -> None:
    assert not is_free(listening)


def test_the_usual_port_is_taken_when_free() -> None:
    usual = free_port()
    assert PortAllocator().assign({"kafka": usual}, {}) == {"kafka": usual}


def test_another_port_is_chosen_when_the_usual_is_taken(listening: int) -> None:
    chosen = PortAllocator().assign({"kafka": listening}, {})["kafka"]
    assert chosen != listening
    assert is_free(chosen)


def test_the_former_port_is_preferred() -> None:
    usual, former = free_port(), free_port()
    assert PortAllocator().assign({"kafka": usual}, {"kafka": former, "gone": 1})["kafka"] == former


def test_two_allocators_never_give_the_same_port_though_no_one_listens_yet() -> None:
    usual = free_port()
    first, second = PortAllocator(), PortAllocator()
    assert first.assign({"kafka": usual}, {})["kafka"] == usual
    assert second.assign({"kafka": usual}, {})["kafka"] != usual
    first.release()
    assert PortAllocator().assign({"kafka": usual}, {})["kafka"] == usual


def test_two_uses_with_the_same_usual_port_get_two() -> None:
    usual = free_port()
    chosen = PortAllocator().assign({"a": usual, "b": usual}, {})
    assert len(set(chosen.values())) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_meshes_of_two_users_never_get_the_same_port() -> None:
    """Each sees only its own files; before, both took a port that neither listened on yet."""
    ask = (
        "import os; os.setgid(64997); os.setuid(64997)\n"
        "from infra.stack.ports import PortAllocator\n"
        "import sys; print(PortAllocator().assign({'kafka': int(sys.argv[1])}, {})['kafka'])"
    )
    usual = free_port()
    mine = PortAllocator()
    assert mine.assign({"kafka": usual}, {})["kafka"] == usual
    # The modules are imported before the process becomes a user who may not read this folder.
    program = f"from infra.stack import ports\n{ask}"
    theirs = subprocess.run([sys.executable, "-c", program, str(usual)], capture_output=True, text=True, check=False)
    assert theirs.returncode == 0, theirs.stderr
    assert int(theirs.stdout) != usual
    mine.release()
