"""The mesh's certificate authority is created, renewed and replaced without a failed call."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from infra.stack.addresses import Addresses
from infra.stack.certificates import AUTHORITY, CERTIFICATE, KEY, LIFE, LOCAL, Authority, place, this_machine
from infra.stack.child import ChildSpec, Program
from infra.stack.errors import StackError
from infra.stack.layout import Layout, python_path
from infra.stack.lifecycle import Timeouts
from infra.stack.probes import ProbeError
from infra.stack.state import StackPhase, StackState, read_state
from infra.stack.supervisor import Supervisor
from infra.stack.topology import SERVICES, environment, specs
from services.kit.grpc.client import open_channel
from services.kit.tls import RELOAD_S
from tests.faults.test_peer_tls import SERVICE, Peers
from tests.service_process import free_port
from tests.waiting import eventually, eventually_is

Files = tuple[Path, Path, Path]


class Machine:
    """Another machine, to which certificate folders are copied, and a service that runs there."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.folder = folder
        self.authority = authority
        authority.issue("server", ["localhost", "127.0.0.1"])
        authority.issue("caller", [])
        self.server, self.caller = self.copy("server"), self.copy("caller")

    def copy(self, name: str) -> Files:
        source = next(each.folder for each in self.authority.issued if each.name == name)
        shutil.copytree(source, self.folder / name, dirs_exist_ok=True)
        return files_of(self.folder / name)


def files_of(folder: Path) -> Files:
    return folder / CERTIFICATE, folder / KEY, folder / AUTHORITY


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "other").mkdir()
    return Machine(tmp_path / "other", Authority(tmp_path / "keys"))


@pytest.fixture
def served(machine: Machine, tmp_path: Path) -> Iterator[Peers]:
    """A service process that shows the machine's `server` and trusts its authorities."""
    peers = Peers(tmp_path)
    peers.service, peers.ca = machine.server[:2], machine.server[2]
    with peers.running():
        yield peers


class Caller:
    """Makes calls without a pause over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._health: Any = health_pb2_grpc.HealthStub(channel)
        self.good = 0
        self.failed: list[str] = []

    async def run(self) -> None:
        while True:
            try:
                await self._health.Check(health_pb2.HealthCheckRequest(), timeout=10)
                self.good += 1
            except grpc.aio.AioRpcError as error:
                self.failed.append(f"{error.code().name}: {error.details()}")
            await asyncio.sleep(0.01)

    async def more(self, calls: int = 20) -> None:
        """Waits until `calls` more calls have succeeded."""
        before = self.good
        await eventually(lambda: self.good >= before + calls, f"{calls} more calls", meanwhile=self._none_failed)

    def _none_failed(self) -> None:
        assert not self.failed, self.failed


@asynccontextmanager
async def calling(port: int, files: Files) -> AsyncIterator[Caller]:
    channel = open_channel(f"127.0.0.1:{port}", tls=files)
    caller = Caller(channel)
    task = asyncio.create_task(caller.run())
    try:
        yield caller
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await channel.close()


async def shown(port: int, serial: Callable[[], int]) -> None:
    """Waits until the service shows the certificate with this serial number."""

    async def read() -> int | None:
        try:
            pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
        except OSError:  # it may be starting
            return None
        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    await eventually_is(read, lambda found: found == serial(), "the certificate")


def serial_of(file: Path) -> int:
    return x509.load_pem_x509_certificates(file.read_bytes())[0].serial_number


def test_the_first_start_makes_the_authority_and_this_machines_certificate(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path / "home", tmp_path / "state")
    (spec,) = specs(layout, ["ingest"])
    variables = spec.prepare(Addresses({"ingest_metrics": 1}, {"ingest": tmp_path / "ingest"})).environment
    files = [Path(variables[f"TIDEMILL_PEER_{what}"]) for what in ("CERT", "KEY", "CA")]
    assert [file.name for file in files] == [CERTIFICATE, KEY, AUTHORITY]
    for path in layout.state.peer_keys.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    (local,) = Authority(layout.state.peer_keys).issued
    assert local.name == LOCAL
    assert {"localhost", "127.0.0.1"} <= set(local.hosts)
    before = serial_of(files[0])
    spec.prepare(Addresses({"ingest_metrics": 1}, {"ingest": tmp_path / "ingest"}))
    assert serial_of(files[0]) == before  # the next start uses the existing certificate


def test_files_of_the_operator_are_left_to_the_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_PEER_CERT", "/etc/mesh/cert.pem")
    layout = Layout.of(tmp_path / "home", tmp_path / "state")
    variables = environment(layout, Addresses({}, {"ingest": tmp_path / "ingest"}), SERVICES[1])
    assert "TIDEMILL_PEER_CERT" not in variables
    assert not layout.state.peer_keys.exists()


async def test_a_certificate_of_the_authority_is_answered_and_a_foreign_one_refused(
    served: Peers, machine: Machine, tmp_path: Path
) -> None:
    assert await served.ask(machine.caller) is grpc.StatusCode.OK
    foreign = Authority(tmp_path / "foreign").issue("caller", [])
    certificate, key, _ = files_of(foreign.folder)
    assert await served.ask((certificate, key, machine.caller[2])) is grpc.StatusCode.UNAVAILABLE
    assert await served.ask(None) is grpc.StatusCode.UNAVAILABLE


async def test_certificates_are_renewed_in_use_without_a_failed_call(served: Peers, machine: Machine) -> None:
    """Both sides use the new files, so the old ones could expire now."""
    async with calling(served.port, machine.caller) as caller:
        await caller.more()
        machine.authority.renew(all_of_them=True)
        for name in ("server", "caller"):
            machine.copy(name)
        await shown(served.port, lambda: serial_of(machine.server[0]))
        await asyncio.sleep(RELOAD_S)  # the caller does not check its files more often
        await caller.more()
        assert not caller.failed


async def test_an_expired_caller_is_refused_until_it_has_its_new_certificate(served: Peers, machine: Machine) -> None:
    machine.authority.issue("caller", [], life=timedelta(seconds=-1))
    machine.copy("caller")
    channel = open_channel(f"127.0.0.1:{served.port}", tls=machine.caller)
    health: Any = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.aio.AioRpcError):
        await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
    machine.authority.issue("caller", [])
    machine.copy("caller")

    async def answered() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
            return True
        return False

    await eventually_is(answered, what="an answer on the same channel")
    await channel.close()


async def test_a_new_authority_takes_over_without_a_failed_call(
    served: Peers, machine: Machine, tmp_path: Path
) -> None:
    """Machines get their new files one after the other; all combinations work until the old authority is retired."""
    shutil.copytree(machine.caller[0].parent, tmp_path / "old")
    old = files_of(tmp_path / "old")
    async with calling(served.port, old) as behind, calling(served.port, machine.caller) as caller:
        machine.authority.rotate()
        machine.copy("server")  # a new server certificate, trusted by callers that only know the old authority
        await shown(served.port, lambda: serial_of(machine.server[0]))
        for each in (behind, caller):
            await each.more()
        machine.copy("caller")
        await asyncio.sleep(RELOAD_S)
        for each in (behind, caller):
            await each.more()
    assert await served.ask(old) is grpc.StatusCode.OK

    machine.authority.retire()
    machine.copy("server")
    await shown(served.port, lambda: serial_of(machine.server[0]))
    machine.copy("caller")
    assert await served.ask(machine.caller) is grpc.StatusCode.OK
    assert await served.ask(old) is grpc.StatusCode.UNAVAILABLE


async def test_a_new_caller_is_believed_by_a_server_that_knows_the_old_authority(
    served: Peers, machine: Machine
) -> None:
    machine.authority.rotate()
    machine.copy("caller")
    assert await served.ask(machine.caller) is grpc.StatusCode.OK


def test_what_is_on_this_machine_is_renewed_before_it_ends(tmp_path: Path) -> None:
    begin = datetime.now(UTC)
    place(tmp_path)
    first = Authority(tmp_path).issued[0]
    assert Authority(tmp_path, begin + LIFE * 0.6).renew() == []
    (renewed,) = Authority(tmp_path, begin + LIFE * 0.7).renew()
    assert renewed.end > first.end
    assert renewed.hosts == first.hosts


def test_the_authority_is_replaced_in_its_last_year_and_retired_at_its_end(tmp_path: Path) -> None:
    place(tmp_path)
    (first,) = Authority(tmp_path).authorities
    late = first.not_valid_after_utc - timedelta(days=300)
    (renewed,) = Authority(tmp_path, late).renew()
    new, old = Authority(tmp_path).authorities
    assert old == first
    assert new.not_valid_after_utc > first.not_valid_after_utc
    assert (renewed.folder / AUTHORITY).read_bytes().count(b"BEGIN") == 2
    Authority(tmp_path, first.not_valid_after_utc + timedelta(days=1)).renew()
    assert Authority(tmp_path).authorities == [new]
    assert (renewed.folder / AUTHORITY).read_bytes().count(b"BEGIN") == 1


async def test_a_running_mesh_renews_and_its_services_show_it_without_a_restart(tmp_path: Path) -> None:
    """A supervisor that looks every moment instead of every hour, and a service that speaks TCP."""
    layout = Layout.of(tmp_path / "home", tmp_path / "state")
    keys = layout.state.peer_keys
    files = files_of(place(keys))

    def prepare(addresses: Addresses) -> Program:
        variables = {
            "PYTHONPATH": python_path(),
            "TIDEMILL_BIND": f"127.0.0.1:{addresses.ports['probe']}",
            "TIDEMILL_STATE": str(layout.state.root),
            **{f"TIDEMILL_PEER_{what}": str(path) for what, path in zip(("CERT", "KEY", "CA"), files, strict=True)},
        }
        return Program((sys.executable, str(SERVICE), "serve"), {**os.environ, **variables}, layout.state.root)

    def probe(addresses: Addresses) -> None:
        try:
            socket.create_connection(("127.0.0.1", addresses.ports["probe"]), 2).close()
        except OSError as error:
            raise ProbeError(str(error)) from error

    def ready() -> StackState | None:
        now = read_state(layout)
        return now if now.phase is StackPhase.READY else None

    supervisor = Supervisor(
        layout,
        [ChildSpec("probe", {"probe": free_port()}, prepare, probe)],
        Timeouts(chores_s=0.2),
        [partial(place, keys)],
    )
    running = asyncio.create_task(supervisor.run())
    try:
        before = await eventually(ready, "the mesh")
        async with calling(before.ports["probe"], files) as caller:
            await caller.more()
            # As if it had been issued two months ago.
            old = Authority(keys, datetime.now(UTC) - LIFE * 0.7).issue(LOCAL, this_machine())
            await eventually(lambda: Authority(keys).issued[0].end > old.end, "the renewal")
            await shown(before.ports["probe"], lambda: serial_of(files[0]))
            await asyncio.sleep(RELOAD_S)  # the caller does not check its files more often
            await caller.more()
            assert not caller.failed
        now = read_state(layout).children["probe"]
        assert (now.pid, now.restarts) == (before.children["probe"].pid, 0)
    finally:
        supervisor.request_stop()
        await running


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "x" * 64, ".ssh"])
def test_an_invalid_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StackError, match="not a valid name"):
        Authority(tmp_path).issue(name, [])
    assert not (tmp_path / "issued").exists()


def test_an_invalid_host_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="neither a host name nor an address"):
        Authority(tmp_path).issue("a", ["not a host"])


def test_a_second_rotation_waits_for_the_end_of_the_first(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with pytest.raises(StackError, match="no previous authority to retire"):
        authority.retire()
    authority.rotate()
    with pytest.raises(StackError, match="still trusted"):
        authority.rotate()
