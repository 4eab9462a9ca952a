"""`tidemill doctor` finds each possible fault, reports it with its remedy, and repairs it if that is safe."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli.main import create_cli
from infra.stack import triton
from infra.stack.addresses import Addresses
from infra.stack.doctor import databases, mesh, stored
from infra.stack.doctor.findings import Check, Finding, Level, examine
from infra.stack.layout import Layout
from infra.stack.process import TAG, start_ticks
from infra.stack.state import (
    OPEN_ELASTICSEARCH,
    ChildPhase,
    ChildState,
    StackPhase,
    StackState,
    read_state,
    write_state,
)
from infra.stack.topology import specs
from services.cleaning.adapters.record_store import SqlRecordStore, keys_in_use
from services.cleaning.adapters.vault import open_vault
from services.cleaning.app.ports import Arrival
from services.cleaning.domain.record import Keeping, RawRecord
from services.kit.bus.losses import FILE_NAME, note_loss
from services.kit.bus.port import LostMessages
from services.kit.bus.topics import RECORDS_RAW
from services.kit.config import home_dir
from services.kit.errors import database_damaged
from services.kit.storage.artifacts import digest_folder
from services.kit.storage.database import open_database
from services.kit.storage.disk import DiskSpace
from services.kit.storage.signing import SigningKey
from tests.conftest import migrations


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    return Layout.of(tmp_path / "home", state)


def look(layout: Layout, name: str, *, repair: bool = False) -> list[Finding]:
    """The findings of one check."""
    every: list[Check] = [*mesh.checks(layout), *databases.checks(layout), *stored.checks(layout)]
    return examine([check for check in every if check.name == name], repair=repair)


def one(layout: Layout, name: str, *, repair: bool = False) -> Finding:
    found = look(layout, name, repair=repair)
    assert len(found) == 1, found
    assert found[0].remedy, "a finding says what to do"
    return found[0]


def note(layout: Layout, phase: StackPhase, *, alive: bool, **children: ChildState) -> None:
    """Writes `stack.json` as a running supervisor does, or as a killed one left it."""
    pid = os.getpid()
    write_state(
        layout.state.file,
        StackState(
            phase,
            layout.home.root,
            layout.state.root,
            pid,
            start_ticks(pid) if alive else 1,
            ports={"kafka": 1},
            children=children,
        ),
    )


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    "name",
    [
        "permissions",
        "state",
        "leftovers",
        "databases",
        "originals",
        "registry",
        "artefacts",
        "snapshots",
        "builds",
    ],
)
def test_a_new_folder_is_well(layout: Layout, name: str) -> None:
    assert look(layout, name) == []


def test_a_folder_that_others_can_read_is_closed(layout: Layout) -> None:
    layout.state.root.chmod(0o755)
    assert one(layout, "permissions").level is Level.FAULT
    assert layout.state.root.stat().st_mode & 0o777 == 0o755, "it repairs only when it is asked to"
    assert one(layout, "permissions", repair=True).repaired
    assert look(layout, "permissions") == []


def test_lost_messages_are_reported_with_their_count_until_they_are_cleared(layout: Layout) -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    for gap in ((0, 10, 358), (1, 0, 2), (1, 0, 2)):
        note_loss(layout.state.root, "tidemill-cleaning", LostMessages(RECORDS_RAW.name, *gap), moment)
    with (layout.state.root / FILE_NAME).open("a") as file:
        file.write('{"group": "cut off by a full di')
    found = one(layout, "losses")
    assert found.level is Level.FAULT
    assert "Up to 350 messages of tidemill.records.raw were deleted before tidemill-cleaning" in found.message
    assert "Run the pipelines again" in found.remedy
    assert (layout.state.root / FILE_NAME).stat().st_mode & 0o077 == 0
    assert one(layout, "losses", repair=True).repaired
    assert look(layout, "losses") == []


def test_an_elasticsearch_that_answers_everyone_is_reported(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a second port on the machine only if it has no network of its own."""
    note(layout, StackPhase.READY, alive=True)
    assert look(layout, "walls") == []
    stack = read_state(layout)
    write_state(layout.state.file, dataclasses.replace(stack, ports={"elasticsearch": 1, OPEN_ELASTICSEARCH: 2}))
    assert "answers every user of this machine" in one(layout, "walls").message
    monkeypatch.setenv("TIDEMILL_STATE", str(layout.state.root))
    monkeypatch.setenv("TIDEMILL_HOME", str(layout.home.root))
    shown = CliRunner().invoke(create_cli(), ["status", "--json"])
    assert "answers every user of this machine" in json.loads(shown.stdout)["warnings"][0]
    assert "answers every user of this machine" in CliRunner().invoke(create_cli(), ["status"]).stdout
    assert "docs/security.md says how" in one(layout, "walls").remedy
    document = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    assert "answers every user of that machine" in document
    assert "kernel.unprivileged_userns_clone" in document


def test_a_node_that_the_kernel_gives_no_network_is_started_openly_and_says_so(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for allowed, uses in ((True, {"elasticsearch"}), (False, {"elasticsearch", OPEN_ELASTICSEARCH})):
        monkeypatch.setattr("infra.stack.elasticsearch.can_isolate", lambda allowed=allowed: allowed)
        (spec,) = specs(layout, ["elasticsearch"])
        assert set(spec.ports) == uses
        monkeypatch.setattr(type(layout.home), "require", lambda _, part: part)
        monkeypatch.setattr("infra.stack.elasticsearch._configure", lambda folder, *_: folder)
        layout.state.elasticsearch.mkdir(parents=True, exist_ok=True)
        program = spec.prepare(Addresses(dict.fromkeys(uses, 9200), {}))
        assert (program.network is not None) == allowed
        assert ("answers every user of this machine" in caplog.text) == (not allowed)


def test_a_state_that_names_a_killed_supervisor_is_corrected(layout: Layout) -> None:
    note(layout, StackPhase.READY, alive=False)
    assert "was killed" in one(layout, "state").message
    assert one(layout, "state", repair=True).repaired
    assert read_state(layout).phase is StackPhase.STOPPED
    assert read_state(layout).ports == {"kafka": 1}, "the ports are kept for the next start"
    assert look(layout, "state") == []


def test_a_state_that_cannot_be_read_is_set_aside(layout: Layout) -> None:
    layout.state.file.write_text("{half a fi")
    assert "cannot be read" in one(layout, "state").message
    assert one(layout, "state", repair=True).repaired
    assert not layout.state.file.exists()
    assert look(layout, "state") == []


def test_a_start_that_failed_is_reported(layout: Layout) -> None:
    note(layout, StackPhase.FAILED, alive=False)
    assert one(layout, "state").level is Level.FAULT


def test_a_state_that_names_a_dead_child_is_reported(layout: Layout) -> None:
    note(layout, StackPhase.READY, alive=True, kafka=ChildState(ChildPhase.READY, pid=dead_pid()))
    assert "for kafka, which does not exist" in one(layout, "state").message


def test_processes_without_a_supervisor_are_ended(layout: Layout) -> None:
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], env={TAG: str(layout.state.root)})
    try:
        assert f"({left.pid})" in one(layout, "leftovers").message
        assert left.poll() is None
        assert one(layout, "leftovers", repair=True).repaired
        assert start_ticks(left.pid) is None
        assert look(layout, "leftovers") == []
    finally:
        left.kill()
        left.wait()


def test_files_that_killed_processes_left_are_removed(layout: Layout) -> None:
    sockets = layout.state.root / "sockets"
    sockets.mkdir(mode=0o700)
    shared = Path("/dev/shm") / f"{triton.shared_memory_prefix(layout)}x"
    partial = layout.state.root / ".stack.json.1.partial"
    for path in (shared, partial):
        path.touch()
    with socket.socket(socket.AF_UNIX) as server:
        # Bound by its relative path: a test's full path may be too long for a socket.
        before = Path.cwd()
        os.chdir(sockets)
        try:
            server.bind("triton:1")
        finally:
            os.chdir(before)
    assert one(layout, "leftovers").message.startswith("3 files")
    assert one(layout, "leftovers", repair=True).repaired
    assert not shared.exists()
    assert not partial.exists()
    assert list(sockets.iterdir()) == []


def test_a_low_disk_is_a_fault_and_a_scarce_one_a_notice(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_DISK_RESERVE_BYTES", "0")
    assert look(layout, "disk") == []
    monkeypatch.setenv("TIDEMILL_DISK_RESERVE_BYTES", str(2**60))
    assert (one(layout, "disk").level, one(layout, "disk").reason) == (Level.FAULT, "DISK_LOW")
    monkeypatch.setattr("infra.stack.doctor.mesh.disk_space", lambda *_: _SCARCE)
    assert (one(layout, "disk").level, one(layout, "disk").reason) == (Level.NOTICE, "")
    # Whatever is kept in reserve.
    full = dataclasses.replace(_SCARCE, free=0, reserve=0)
    monkeypatch.setattr("infra.stack.doctor.mesh.disk_space", lambda *_: full)
    found = one(layout, "disk")
    assert (found.level, found.reason) == (Level.FAULT, "DISK_FULL")
    assert "The disk is full" in found.message
    assert "Free some space" in found.remedy


def test_a_port_that_is_taken_is_reported(layout: Layout) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        stopped = StackState(StackPhase.STOPPED, layout.home.root, layout.state.root, ports={"kafka": port})
        write_state(layout.state.file, stopped)
        assert any(f"Port {port} of kafka is in use" in each.message for each in look(layout, "ports"))


def test_a_part_that_does_not_answer_is_a_fault_with_its_log(layout: Layout) -> None:
    note(
        layout,
        StackPhase.READY,
        alive=True,
        kafka=ChildState(ChildPhase.READY, pid=os.getpid(), log="/x/kafka.log"),
        pipeline=ChildState(ChildPhase.RESTARTING, restarts=3, last_error="ended with code 1", log="/x/pipeline.log"),
    )
    found = look(layout, "health")
    assert [each.level for each in found] == [Level.FAULT, Level.FAULT]
    assert "kafka is not healthy: port 1" in found[0].message
    assert "/x/kafka.log" in found[0].remedy
    assert [each.reason for each in found] == ["BUS_AWAY", ""]
    assert "ended with code 1" in found[1].message


def test_the_holes_of_triton_are_reported_and_an_open_door_is_a_fault(layout: Layout) -> None:
    notice = one(layout, "triton")
    assert notice.level is Level.NOTICE
    assert "CVE-2025-23310" in notice.message
    shut = [
        "tritonserver",
        "--allow-http=false",
        "--allow-metrics=false",
        "--grpc-address=unix:/s/triton",
        "--grpc-restricted-protocol=shared-memory,trace,logging:refused=x",
    ]
    assert mesh.doors_open(shut) == []
    assert mesh.doors_open(["tritonserver", "--http-address=127.0.0.1"]) == [
        "HTTP",
        "metrics",
        "shared-memory",
        "trace",
        "logging",
        "gRPC on a port without TLS",
    ]


def test_the_command_that_starts_triton_has_all_doors_shut(tmp_path: Path) -> None:
    # The command line of the real child, so that the check stays in step with it.
    layout = Layout.of(home_dir(), tmp_path)
    (spec,) = specs(layout, ["triton"])
    command = spec.prepare(Addresses({}, {"triton_grpc": layout.state.root / "sockets" / "triton:1"})).command
    assert mesh.doors_open(list(command)) == []


def _database(layout: Layout) -> Path:
    layout.state.databases.mkdir()
    path = layout.state.databases / "cleaning.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE t (a TEXT, b TEXT)")
        database.execute("CREATE INDEX i ON t (a)")
        database.executemany("INSERT INTO t VALUES (?, ?)", [(f"{n}" * 50, f"{-n}") for n in range(500)])
        database.commit()
    return path


def test_a_damaged_database_is_found(layout: Layout) -> None:
    path = _database(layout)
    assert look(layout, "databases") == []
    content = bytearray(path.read_bytes())
    content[4096:8192] = os.urandom(4096)
    path.write_bytes(content)
    finding = one(layout, "databases", repair=True)
    assert str(path) in finding.message
    assert not finding.repaired
    assert "backup" in finding.remedy
    assert finding.reason == "DATABASE_DAMAGED"


def test_a_damaged_index_is_built_again(layout: Layout) -> None:
    path = _database(layout)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA writable_schema=ON")
        database.execute("UPDATE sqlite_schema SET sql = 'CREATE INDEX i ON t (b)' WHERE name = 'i'")
        database.commit()
    assert "index" in one(layout, "databases").message
    assert one(layout, "databases", repair=True).repaired
    assert look(layout, "databases") == []


def test_a_file_that_is_not_database_is_found(layout: Layout) -> None:
    layout.state.mlflow.write_bytes(b"x" * 4096)
    assert "mlflow.db is damaged: file is not a database" in one(layout, "registry").message


def test_a_missing_key_of_originals_is_a_fault(layout: Layout) -> None:
    file = layout.state.databases / "cleaning.sqlite"
    file.parent.mkdir()
    engine = open_database(f"sqlite:///{file}", migrations("cleaning"))
    record = RawRecord("r", "s", "text", {}, keeping=Keeping.ENCRYPTED)
    SqlRecordStore(engine, open_vault(layout.state.originals_key, [])).collect([Arrival(record)], [], [])
    (key,) = keys_in_use(engine)
    engine.dispose()
    assert look(layout, "originals") == []
    layout.state.originals_key.unlink()
    finding = one(layout, "originals")
    assert (finding.level, finding.reason) == (Level.FAULT, "ORIGINALS_KEY_MISSING")
    assert f"lacks the key {key}, with which 1 rows" in finding.message
    assert "backup" in finding.remedy


def test_a_damaged_snapshot_is_found(layout: Layout) -> None:
    folder = layout.state.artifacts / "datasets" / "reviews" / "abc"
    folder.mkdir(parents=True)
    files = {}
    for name in ("train.parquet", "holdout.parquet"):
        (folder / name).write_bytes(name.encode())
        files[name] = {"sha256": hashlib.sha256(name.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    assert look(layout, "snapshots") == []
    (folder / "train.parquet").write_bytes(b"trai")
    assert "train.parquet is not what was written" in one(layout, "snapshots").message
    assert one(layout, "snapshots").reason == "SNAPSHOT_DAMAGED"
    (folder / "train.parquet").unlink()
    assert "train.parquet cannot be read" in one(layout, "snapshots").message
    (folder / "manifest.json").write_text("{")
    assert "manifest.json cannot be read" in one(layout, "snapshots").message


def test_a_damaged_build_is_found(layout: Layout) -> None:
    folder = layout.state.artifacts / "runs" / "r1" / "builds" / "int8"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights")
    (folder / "tidemill.json").write_text(json.dumps({"digest": digest_folder(folder)}))
    assert "has no tidemill.sig" in one(layout, "builds").message
    key = SigningKey(layout.state.model_keys / "signing.pem", layout.state.model_keys / "trusted")
    key.ensure()
    key.sign(folder)
    assert look(layout, "builds") == []
    (folder / "model.onnx").write_bytes(b"weight")
    assert "model.onnx is damaged" in one(layout, "builds").message


def test_a_check_that_fails_itself_is_a_finding() -> None:
    def broken() -> list[Finding]:
        raise OSError("the disk is made of cheese")

    (finding,) = examine([Check("disk", broken)])
    assert finding.level is Level.FAULT
    assert "cheese" in finding.message


def test_a_repair_that_fails_leaves_the_fault() -> None:
    def broken() -> None:
        raise OSError("read-only file system")

    (finding,) = examine([Check("x", lambda: [Finding("x", Level.FAULT, "bad", "do this", broken)])], repair=True)
    assert not finding.repaired
    assert finding.remedy == "The repair failed: read-only file system. do this"


def test_the_command_ends_with_1_where_there_is_a_fault_and_with_0_after_its_repair(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMILL_STATE", str(layout.state.root))
    monkeypatch.setenv("TIDEMILL_HOME", str(layout.home.root))
    monkeypatch.setenv("TIDEMILL_DISK_RESERVE_BYTES", "0")
    monkeypatch.setattr("infra.stack.preflight.problems", lambda _: [])  # this machine may be busy
    run = CliRunner().invoke
    assert run(create_cli(), ["doctor"]).exit_code == 0
    layout.state.root.chmod(0o755)
    human = run(create_cli(), ["doctor"])
    assert human.exit_code == 1
    assert f"→ chmod 700 {layout.state.root}" in human.stdout
    machine = run(create_cli(), ["doctor", "--json"])
    assert machine.exit_code == 1
    answer = json.loads(machine.stdout)
    assert answer["versions"]["triton"] == "2.51.0"
    assert {"check": "permissions", "level": "fault", "repairable": True, "repaired": False}.items() <= next(
        each for each in answer["findings"] if each["check"] == "permissions"
    ).items()
    mended = run(create_cli(), ["doctor", "--repair"])
    assert mended.exit_code == 0
    assert "repaired" in mended.stdout


def test_the_status_names_part_and_cause_of_a_fault_and_the_command_that_says_what_to_do(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a bus that is unavailable, a full disk, and a damaged database; a damaged snapshot concerns no part."""
    monkeypatch.setenv("TIDEMILL_STATE", str(layout.state.root))
    monkeypatch.setenv("TIDEMILL_HOME", str(layout.home.root))
    monkeypatch.setenv("COLUMNS", "400")
    ended = f"ended: {database_damaged(str(layout.state.databases / 'training.sqlite'), 'malformed').message}"
    note(
        layout,
        StackPhase.READY,
        alive=True,
        kafka=ChildState(ChildPhase.READY, pid=os.getpid(), log="/x/kafka.log"),
        training=ChildState(ChildPhase.RESTARTING, restarts=1, last_error=ended, log="/x/training.log"),
    )
    full = dataclasses.replace(_SCARCE, free=0, reserve=0)
    monkeypatch.setattr("gateway.cli.stack_commands.disk_space", lambda *_: full)
    shown = CliRunner().invoke(create_cli(), ["status"])
    assert shown.exit_code == 1
    kafka, training = (
        next(line for line in shown.stdout.splitlines() if name in line) for name in ("kafka", "training")
    )
    assert "unhealthy" in kafka
    assert "port 1" in kafka
    for word in ("training.sqlite is damaged (malformed)", "restore the file from a backup"):
        assert word in training
    assert "The disk is full, nothing can be written" in shown.stdout
    assert "`tidemill doctor` says what is wrong and what to do" in shown.stdout
    machine = json.loads(CliRunner().invoke(create_cli(), ["status", "--json"]).stdout)
    assert machine["disk"]["state"] == "full"


_SCARCE = DiskSpace(Path("/state"), 100 << 30, 3 << 30, 2 << 30)
