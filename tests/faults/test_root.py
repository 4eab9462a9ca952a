"""Started by root, the mesh runs as another user: no process is root or can read what only root may.

Only root can try; other users have no privileges to give up.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.stack import client, mesh_user
from infra.stack.child import User
from infra.stack.errors import StackError
from infra.stack.kafka_access import MESH, password_file
from infra.stack.layout import Layout
from infra.stack.private import own_folder
from infra.stack.process import tagged
from infra.stack.state import StackPhase, StackState
from infra.stack.testing import running_parts
from services.kit.config import home_dir
from tests.processes import unless_ended
from tests.trees import entries_below

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="who is not root has nothing to give up"),
]

PARTS = {"kafka", "elasticsearch", "triton", "telemetry", "ingest", "inference", "gateway"}
_IDS = ("Uid", "Gid")
_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapAmb")


@pytest.fixture(scope="module")
def closed() -> Iterator[Path]:
    """A folder that only root may enter, for the state folder, as below /root."""
    with tempfile.TemporaryDirectory(prefix="tidemill-root-", ignore_cleanup_errors=True) as name:
        (Path(name) / "secret").write_text("root's")
        yield Path(name)


@pytest.fixture(scope="module")
def stack(closed: Path) -> Iterator[StackState]:
    """A mesh in a state folder that an earlier release left, owned by root."""
    state = closed / "state"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(mesh_user.USER, raising=False)
        (state / "artifacts" / "runs").mkdir(parents=True)
        (state / "artifacts" / "runs" / "model.safetensors").write_bytes(b"weights")
        os.link(state / "artifacts" / "runs" / "model.safetensors", state / "artifacts" / "copy")
        for name in ("loops", "hidden"):
            (closed / name).mkdir()
        # A service could write this file; root keeps its notes where only root can write.
        (state / "source-roots.json").write_text(json.dumps({"roots": [str(closed / "hidden")]}))
        with shown(state, closed / "loops"), running_parts(PARTS, state, own=True) as running:
            yield running


@contextmanager
def shown(state: Path, folder: Path) -> Iterator[None]:
    note = home_dir() / "shown.json"
    before = note.read_text() if note.exists() else None
    mesh_user.show(Layout.of(home_dir(), state), [folder])
    try:
        yield
    finally:
        note.unlink() if before is None else note.write_text(before)


def status_of(pid: int) -> dict[str, list[str]]:
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.split() for name, _, value in lines}


def processes_of(stack: StackState) -> list[int]:
    assert stack.pid is not None
    return [stack.pid, *(process.pid for process in tagged(stack.state))]


def test_no_process_of_the_mesh_has_a_right_of_roots(stack: StackState) -> None:
    pids = processes_of(stack)
    assert {child.pid for child in stack.children.values()} <= set(pids)
    for pid in pids:
        with unless_ended(pid):
            found = status_of(pid)
            for name in _IDS:
                assert "0" not in found[name], (pid, name)
            assert "0" not in found["Groups"], pid
            for name in _CAPABILITIES:
                assert int(found[name][0], 16) == 0, (pid, name)
            assert found["NoNewPrivs"] == ["1"], pid


def test_all_work_as_one_user_who_is_not_root(stack: StackState) -> None:
    found = client.status(stack.state, stack.home)
    assert all(child.healthy for child in found.children.values()), found
    users = set()
    for pid in processes_of(stack):
        with unless_ended(pid):
            users.add(Path(f"/proc/{pid}").stat().st_uid)
    assert len(users) == 1


def test_the_state_is_that_users_alone(stack: StackState) -> None:
    owner = stack.state.stat()
    assert owner.st_uid != 0
    assert stat.S_IMODE(owner.st_mode) == 0o700
    found = list(entries_below(stack.state))
    assert len(found) > 50
    others = [path for path, entry in found if not stat.S_ISLNK(entry.st_mode) and entry.st_uid != owner.st_uid]
    assert others == []


def test_the_mesh_sees_beside_its_state_what_root_showed_it_and_nothing_else(stack: StackState, closed: Path) -> None:
    for pid in processes_of(stack):
        with unless_ended(pid):
            seen = Path(f"/proc/{pid}/root{closed}")
            assert sorted(path.name for path in seen.iterdir()) == ["loops", "state"], pid
            # A home that everyone may enter is the mesh's to see, too.
            if not Path.home().stat().st_mode & stat.S_IXOTH:
                assert not os.access(f"/proc/{pid}/root{Path.home()}/.ssh", os.F_OK), pid


def test_it_cannot_write_to_the_code_that_it_runs(stack: StackState) -> None:
    pid = stack.children["ingest"].pid
    for folder in (Path(sys.prefix), Path(sys.base_prefix), Path(mesh_user.__file__).parent):
        done = subprocess.run(
            ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "sh", "-c", f"test -w {folder} && touch {folder}/x"],
            user=stack.state.stat().st_uid,
            extra_groups=[],
            check=False,
            stderr=subprocess.DEVNULL,
        )
        assert done.returncode != 0, folder
        assert not (folder / "x").exists()


def test_roots_command_line_is_that_user_before_it_touches_the_state(stack: StackState) -> None:
    """Otherwise a service could place a link where root reads a password or writes a file."""
    secret = password_file(Layout.of(stack.home, stack.state).state, MESH)
    text = secret.read_text()
    owner = stack.state.stat()
    secret.unlink()
    secret.symlink_to("/etc/shadow")
    try:
        found = tidemill(stack.state, "status", "--json")
        assert not json.loads(found.stdout)["parts"]["kafka"]["healthy"]
    finally:
        secret.unlink()
        secret.write_text(text)
        secret.chmod(0o600)
        os.chown(secret, owner.st_uid, owner.st_gid)
    assert tidemill(stack.state, "status", "--json").returncode == 0
    created = tidemill(stack.state, "keys", "create", "someone", "--json")
    assert created.returncode == 0, created.stderr
    assert [path for path in (stack.state / "db").iterdir() if path.stat().st_uid == 0] == []


def tidemill(state: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("TIDEMILL_")}
    env |= {"TIDEMILL_STATE": str(state), "TIDEMILL_HOME": str(home_dir())} | environment
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", *arguments],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )


def test_root_starts_and_stops_a_mesh_by_its_command_line(tmp_path: Path) -> None:
    state = tmp_path / "state"
    up = tidemill(state, "up", "--only", "triton", TIDEMILL_USER="64998")
    assert up.returncode == 0, up.stderr
    try:
        assert state.stat().st_uid == 64998
        assert (state / "logs" / "supervisor.log").stat().st_uid == 64998
        pid = client.status(state, home_dir()).pid
        assert pid is not None
        assert status_of(pid)["Uid"] == ["64998"] * 4
    finally:
        down = tidemill(state, "down")
    assert down.returncode == 0, down.stderr
    assert client.status(state, home_dir()).phase is StackPhase.STOPPED
    assert mesh_user.choose(Layout.of(home_dir(), state)) == User(64998, 64998)  # at the next start, too


def test_meshes_of_two_users_share_what_root_fetched_and_nothing_that_they_write(stack: StackState) -> None:
    home = Layout.of(home_dir(), stack.state).home
    first = stack.state.stat().st_uid
    assert set(home.written(first)).isdisjoint(home.written(64998))
    for folder in home.written(first):
        assert folder.stat().st_uid == first, folder
    assert all(path.stat().st_uid == 0 for path in (home.root, home.kafka_libs, home.elasticsearch))


def test_where_it_is_impossible_a_sentence_says_what_to_do(tmp_path: Path) -> None:
    """Without the right to mount, root's own folders cannot be shown to another user."""
    code = "\n".join(
        [
            "import ctypes, os, sys",
            f"ctypes.CDLL(None).prctl(24, {_CAP_SYS_ADMIN})",  # PR_CAPBSET_DROP: gone at the next exec
            "os.execv(sys.executable, [sys.executable, '-m', 'gateway.cli.main', 'up', '--only', 'triton'])",
        ]
    )
    env = {**os.environ, "TIDEMILL_STATE": str(tmp_path / "state"), "TIDEMILL_HOME": str(tmp_path / "home")}
    tmp_path.chmod(0o700)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode != 0
    words = " ".join(done.stderr.split())
    assert "The mesh must not run as root" in words
    assert "start this as another user than root" in words
    assert "Traceback" not in words
    assert not (tmp_path / "state").exists()


_CAP_SYS_ADMIN = 21


@pytest.mark.parametrize(
    ("value", "phrase"),
    [("root", "is root"), ("0", "is root"), ("nobody-such", "no such user"), ("7:0", "root's")],
)
def test_a_wrong_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, phrase: str) -> None:
    monkeypatch.setenv(mesh_user.USER, value)
    with pytest.raises(StackError, match=phrase):
        mesh_user.choose(Layout.of(tmp_path / "home", tmp_path / "state"))


def test_giving_a_folder_follows_no_link_and_takes_no_file_of_others(tmp_path: Path) -> None:
    user = User(64998, 64998)
    foreign = tmp_path / "foreign"
    foreign.write_text("root's")
    state = tmp_path / "state"
    (state / "db").mkdir(parents=True)
    os.chown(state, user.uid, user.gid)  # the user has used this folder
    (state / "link").symlink_to(foreign)
    os.link(foreign, state / "name")
    (state / "db" / "written-by-root").write_text("x")
    mesh_user.give(state, user)
    assert foreign.stat().st_uid == 0
    assert (state / "db" / "written-by-root").stat().st_uid == user.uid


def test_nothing_of_roots_goes_into_a_home_of_another_user(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 64997, 64997)
    layout = Layout.of(home, tmp_path / "state")
    assert "belongs to the user 64997" in str(mesh_user.obstacle(layout))
    with pytest.raises(StackError, match="belongs to the user 64997"):
        mesh_user.show(layout, [tmp_path])
    assert list(home.iterdir()) == []


def test_a_folder_of_another_user_is_not_taken_for_the_meshs_own(tmp_path: Path) -> None:
    """In /tmp anyone may create a folder of that name first."""
    theirs = tmp_path / "sockets"
    theirs.mkdir()
    os.chown(theirs, 64997, 64997)
    with pytest.raises(StackError, match="not a folder of this user"):
        own_folder(theirs)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(StackError, match="not a folder of this user"):
        own_folder(tmp_path / "link")


@pytest.mark.parametrize("folder", ["/etc", "/", "/usr/.."])
def test_a_folder_of_the_system_is_never_given_away(tmp_path: Path, folder: str) -> None:
    before = Path(folder).stat().st_uid
    with pytest.raises(StackError, match="contains more than a mesh"):
        mesh_user.become_mesh_user(Layout.of(tmp_path / "home", Path(folder)))
    assert Path(folder).stat().st_uid == before


def test_a_folder_that_a_third_user_could_exchange_is_never_given_away(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 64997, 64997)
    with pytest.raises(StackError, match="belongs to the user 64997"):
        mesh_user.become_mesh_user(Layout.of(tmp_path / "home", theirs / "state"))
    assert not (theirs / "state").exists()
