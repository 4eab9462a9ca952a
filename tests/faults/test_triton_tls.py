"""Triton on a port, for gateways on other machines: the real server answers only who has a certificate of the mesh."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from infra.stack import certificates, client, triton
from infra.stack.certificates import Authority, PeerFiles
from infra.stack.doctor.mesh import doors_open
from infra.stack.layout import python_path
from infra.stack.state import ChildState, StackState
from infra.stack.testing import running_parts
from services.inference.adapters.triton_control import TritonControl
from services.kit.errors import UnavailableError
from services.serving.adapters.triton_client import open_triton
from tests.faults.strangers import open_folder
from tests.faults.test_mesh_authority import serial_of, shown
from tests.waiting import eventually

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def stack() -> Iterator[StackState]:
    with pytest.MonkeyPatch.context() as patch, open_folder() as folder:
        patch.setenv(triton.HOST, "127.0.0.1")
        with running_parts({"triton"}, folder / "state", own=True) as running:
            yield running


@pytest.fixture
def own(stack: StackState) -> PeerFiles:
    return certificates.shown(stack.layout.state.peer_keys)


@pytest.fixture
def foreign(tmp_path: Path) -> PeerFiles:
    """Files that another mesh's authority certified."""
    authority = Authority(tmp_path / "other")
    issued = authority.issue("stranger", ["127.0.0.1"])
    return PeerFiles(*(issued.folder / name for name in ("certificate.pem", "key.pem", "authority.pem")))


async def live(channel: grpc.aio.Channel) -> grpc.StatusCode:
    """The status of a question to Triton."""
    stub = GRPCInferenceServiceStub(channel)
    try:
        await stub.ServerLive(pb.ServerLiveRequest(), timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        await channel.close()
    return grpc.StatusCode.OK


async def test_who_has_a_certificate_of_the_mesh_is_served(stack: StackState, own: PeerFiles) -> None:
    assert stack.triton_grpc.startswith("127.0.0.1:")
    assert await live(open_triton(stack.triton_grpc, own)) is grpc.StatusCode.OK
    control = TritonControl(stack.triton_grpc, load_timeout_s=20, tls=own)
    assert control.ready_versions() == {}
    control.close()


async def test_who_has_none_is_refused(stack: StackState, own: PeerFiles, foreign: PeerFiles) -> None:
    plain = grpc.aio.insecure_channel(stack.triton_grpc)
    nameless = grpc.aio.secure_channel(stack.triton_grpc, grpc.ssl_channel_credentials(own.authority.read_bytes()))
    trusting = PeerFiles(foreign.certificate, foreign.key, own.authority)
    for channel in (plain, nameless, open_triton(stack.triton_grpc, trusting)):
        assert await live(channel) is grpc.StatusCode.UNAVAILABLE
    control = TritonControl(stack.triton_grpc, load_timeout_s=20, tls=trusting)
    with pytest.raises(UnavailableError):
        control.load("evil", 1)
    control.close()


async def test_a_server_of_another_mesh_is_not_believed(stack: StackState, own: PeerFiles, foreign: PeerFiles) -> None:
    wrong = PeerFiles(own.certificate, own.key, foreign.authority)
    assert await live(open_triton(stack.triton_grpc, wrong)) is grpc.StatusCode.UNAVAILABLE


def renew(stack: StackState) -> None:
    """New certificates, as the mesh's user, which a command of root becomes."""
    subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", "certs", "renew", "--all"],
        env={**os.environ, "PYTHONPATH": python_path(), "TIDEMILL_STATE": str(stack.state)},
        check=True,
        timeout=120,
    )


async def test_renewed_certificates_are_used_without_a_restart_of_the_mesh(stack: StackState, own: PeerFiles) -> None:
    """Triton itself is started again: it reads them only then."""
    control = TritonControl(stack.triton_grpc, load_timeout_s=20, tls=own)
    renew(stack)
    await shown(int(stack.triton_grpc.rpartition(":")[2]), lambda: serial_of(own.certificate))
    assert await live(open_triton(stack.triton_grpc, own)) is grpc.StatusCode.OK
    assert control.ready_versions() == {}
    control.close()

    def again() -> ChildState | None:
        child = client.status(stack.state, stack.home).children["triton"]
        return child if child.healthy else None

    assert (await eventually(again, "the supervisor's probe")).restarts == 1


def test_doctor_counts_such_a_port_as_closed(stack: StackState) -> None:
    pid = client.status(stack.state, stack.home).children["triton"].pid
    assert pid is not None
    command = psutil.Process(pid).cmdline()
    assert doors_open(command) == []
    assert doors_open([each for each in command if "mutual" not in each]) == ["gRPC on a port without TLS"]
