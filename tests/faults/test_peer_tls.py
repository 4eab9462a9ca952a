"""Services on several machines authenticate each other by certificates of one authority, and refuse everyone else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from infra.stack.layout import python_path
from services.kit.grpc.client import open_channel
from tests.faults.test_door_tls import Authority
from tests.processes import wait_started
from tests.service_process import free_port
from tests.waiting import eventually_is

SERVICE = Path(__file__).parents[1] / "integration" / "kit" / "probe_service.py"


class Peers:
    """An authority, and a service that it certified."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.authority = Authority.make("mesh")
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self.authority.pem)
        self.service = self.issue("service")
        self.log = folder / "log"

    def issue(self, name: str, by: Authority | None = None) -> tuple[Path, Path]:
        """Issues a certificate and its key, in a folder of their own."""
        (self.folder / name).mkdir(exist_ok=True)
        return (by or self.authority).issue(name, self.folder / name)

    def start(self) -> subprocess.Popen[bytes]:
        """The service as a process."""
        certificate, key = self.service
        environment = {
            "PYTHONPATH": python_path(),
            "TIDEMILL_BIND": f"127.0.0.1:{self.port}",
            "TIDEMILL_STATE": str(self.folder),
            "TIDEMILL_PEER_CERT": str(certificate),
            "TIDEMILL_PEER_KEY": str(key),
            "TIDEMILL_PEER_CA": str(self.ca),
        }
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, str(SERVICE), "serve"], env={**os.environ, **environment}, stdout=log, stderr=log
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Runs the service during the block."""
        process = self.start()
        try:
            wait_started(process, self.log, lambda: "serves on port" in self.log.read_text())
            yield
        finally:
            process.kill()
            process.wait()

    async def ask(self, tls: tuple[Path, Path, Path] | None) -> grpc.StatusCode:
        """The status of a call with these files; waits for a server that is still starting."""
        channel = open_channel(f"127.0.0.1:{self.port}", tls=tls)
        health: Any = health_pb2_grpc.HealthStub(channel)
        try:
            await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code()
        finally:
            await channel.close()
        return grpc.StatusCode.OK


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    made = Peers(tmp_path_factory.mktemp("peers"))
    with made.running():
        yield made


async def test_a_peer_with_a_certificate_of_the_mesh_is_answered(peers: Peers) -> None:
    assert await peers.ask((*peers.issue("caller"), peers.ca)) is grpc.StatusCode.OK


async def test_strangers_are_refused(peers: Peers) -> None:
    stranger = peers.issue("stranger", Authority.make("stranger"))
    assert await peers.ask((*stranger, peers.ca)) is grpc.StatusCode.UNAVAILABLE
    assert await peers.ask(None) is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_the_authority_does_not_know_is_not_believed(peers: Peers, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(Authority.make("mesh").pem)
    assert await peers.ask((*peers.issue("caller"), other)) is grpc.StatusCode.UNAVAILABLE


async def test_a_new_certificate_holds_without_a_restart(peers: Peers) -> None:
    """The authority changes: callers with certificates of the new one are answered, those of the old one are not."""
    old = peers.issue("old")
    old_ca = peers.folder / "old-ca.pem"
    old_ca.write_bytes(peers.ca.read_bytes())
    peers.authority = Authority.make("mesh")
    peers.ca.write_bytes(peers.authority.pem)
    peers.service = peers.issue("service")
    new = (*peers.issue("new"), peers.ca)
    await eventually_is(lambda: peers.ask(new), lambda code: code is grpc.StatusCode.OK, "the new certificate")
    assert await peers.ask((*old, old_ca)) is grpc.StatusCode.UNAVAILABLE
