"""The folder of Unix sockets: private, and short enough for the kernel."""

from __future__ import annotations

import socket
import stat
import tempfile
from pathlib import Path

import pytest

from infra.stack.errors import StackError
from infra.stack.layout import Layout, State
from infra.stack.private import private_folder
from infra.stack.sockets import LONGEST_NAME, place_sockets
from infra.stack.topology import specs


def private(folder: Path) -> bool:
    return stat.S_IMODE(folder.stat().st_mode) == 0o700


def opens(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def test_every_socket_has_a_name_that_fits() -> None:
    names = [name for spec in specs(Layout.of(Path("/h"), Path("/s"))) for name in spec.sockets.values()]
    assert names
    assert max(len(name) for name in names) <= LONGEST_NAME


def test_a_short_state_folder_holds_its_sockets(tmp_path_factory: pytest.TempPathFactory) -> None:
    state = State(tmp_path_factory.getbasetemp() / "s")
    state.root.mkdir()
    folder = place_sockets(state)
    assert folder == state.root / "sockets"
    assert private(folder)


def test_a_long_state_folder_has_its_sockets_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Path(tempfile.mkdtemp())
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    state = State(tmp_path / ("deep" * 30))
    folder = place_sockets(state)
    assert folder.is_relative_to(runtime)
    assert private(folder)
    assert private(folder.parent)
    opens(folder / ("x" * LONGEST_NAME))
    other = State(tmp_path / ("deeper" * 20))
    assert place_sockets(other) != folder
    assert place_sockets(state) == folder


def test_without_a_run_time_folder_sockets_are_in_the_users_own_below_tmp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    folder = place_sockets(State(tmp_path / ("deep" * 30)))
    assert private(folder)
    assert private(folder.parent)
    folder.rmdir()


def test_a_folder_that_others_can_enter_is_closed(tmp_path_factory: pytest.TempPathFactory) -> None:
    state = State(tmp_path_factory.getbasetemp() / "o")
    (state.root / "sockets").mkdir(parents=True)
    (state.root / "sockets").chmod(0o777)
    assert private(place_sockets(state))


def test_a_link_in_its_place_is_refused(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    state = State(tmp_path_factory.getbasetemp() / "l")
    state.root.mkdir()
    (state.root / "sockets").symlink_to(tmp_path)
    with pytest.raises(StackError, match="not a folder of this user"):
        place_sockets(state)


def test_a_state_folder_that_all_users_share_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with pytest.raises(StackError, match="TIDEMILL_STATE"):
        private_folder(shared)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777
