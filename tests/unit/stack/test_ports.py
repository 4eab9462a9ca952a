"""Ports: the former one, else the usual one, else a free one; never one that another mesh reserved."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

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


def test_the_usual_port_is_taken_when_free(tmp_path: Path) -> None:
    usual = free_port()
    assert PortAllocator(tmp_path).assign({"kafka": usual}, {}) == {"kafka": usual}


def test_another_port_is_chosen_when_the_usual_is_taken(tmp_path: Path, listening: int) -> None:
    chosen = PortAllocator(tmp_path).assign({"kafka": listening}, {})["kafka"]
    assert chosen != listening
    assert is_free(chosen)


def test_the_former_port_is_preferred(tmp_path: Path) -> None:
    usual, former = free_port(), free_port()
    assert PortAllocator(tmp_path).assign({"kafka": usual}, {"kafka": former, "gone": 1})["kafka"] == former


def test_two_allocators_never_give_the_same_port_though_no_one_listens_yet(tmp_path: Path) -> None:
    usual = free_port()
    first, second = PortAllocator(tmp_path), PortAllocator(tmp_path)
    assert first.assign({"kafka": usual}, {})["kafka"] == usual
    assert second.assign({"kafka": usual}, {})["kafka"] != usual
    first.release()
    assert PortAllocator(tmp_path).assign({"kafka": usual}, {})["kafka"] == usual


def test_two_uses_with_the_same_usual_port_get_two(tmp_path: Path) -> None:
    usual = free_port()
    chosen = PortAllocator(tmp_path).assign({"a": usual, "b": usual}, {})
    assert len(set(chosen.values())) == 2
