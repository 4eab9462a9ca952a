"""The state file: written whole, read back, and not believed when its supervisor is gone."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from infra.stack.layout import Layout
from infra.stack.process import start_ticks
from infra.stack.state import ChildPhase, ChildState, StackPhase, StackState, read_state, write_state


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.of(tmp_path / "home", tmp_path)


def running(layout: Layout) -> StackState:
    return StackState(
        phase=StackPhase.READY,
        home=layout.home.root,
        state=layout.state.root,
        pid=os.getpid(),
        pid_ticks=start_ticks(os.getpid()),
        ports={"kafka": 9092, "elasticsearch": 9200},
        sockets={"triton_grpc": Path("/state/sockets/triton:1")},
        children={"kafka": ChildState(ChildPhase.READY, pid=7, restarts=1, last_error="was killed", started_at=1.5)},
    )


def test_what_is_written_is_read(layout: Layout) -> None:
    stack = running(layout)
    write_state(layout.state.file, stack)
    assert read_state(layout) == stack
    assert [path.name for path in layout.state.root.iterdir()] == ["stack.json"]


def test_a_process_that_got_the_same_id_later_is_not_the_supervisor(layout: Layout) -> None:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    write_state(layout.state.file, dataclasses.replace(running(layout), pid_ticks=ticks - 1))
    found = read_state(layout)
    assert found.phase is StackPhase.CRASHED
    assert not found.running
    assert found.pid is None
    assert found.children["kafka"].phase is ChildPhase.STOPPED


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "children": 3}'])
def test_a_file_that_makes_no_sense_means_that_nothing_runs(layout: Layout, content: str) -> None:
    layout.state.file.write_text(content)
    assert read_state(layout).phase is StackPhase.STOPPED


def test_addresses(layout: Layout) -> None:
    stack = running(layout)
    assert stack.kafka_bootstrap == "127.0.0.1:9092"
    assert stack.elasticsearch_url == "http://127.0.0.1:9200"
    assert stack.triton_grpc == "unix:/state/sockets/triton:1"
    assert stack.triton_repository == layout.state.root / "triton" / "models"
