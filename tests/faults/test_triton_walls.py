"""Triton runs code for anyone who can call it: attacks by other users and by web pages, on the real server."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from infra.stack.doctor.mesh import doors_open
from infra.stack.layout import Home
from infra.stack.process import tagged
from infra.stack.state import StackState
from infra.stack.testing import running_parts
from infra.stack.triton import SERVER, place_backends, server_folder
from services.kit.config import home_dir
from tests.faults.strangers import STRANGER, connects, open_folder

pytestmark = pytest.mark.real

_OUTPUT = {"name": "y", "data_type": "TYPE_FP32", "dims": [1]}
_CONFIG = json.dumps({"backend": "python", "input": [], "output": [_OUTPUT]})


@pytest.fixture(scope="module")
def stack() -> Iterator[StackState]:
    with open_folder() as folder, running_parts({"triton"}, folder / "state", own=True) as running:
        yield running


@pytest.fixture
def client(stack: StackState) -> Iterator[Any]:
    """A client of the mesh's own user."""
    with triton.InferenceServerClient(stack.triton_grpc) as server:
        yield server


@pytest.fixture
def installed_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package's server, laid out as in the official image and named by the environment."""
    with open_folder() as folder:
        server = folder / "tritonserver"
        server.mkdir()
        (server / "bin").symlink_to(server_folder() / "bin")
        (server / "caches").symlink_to(server_folder() / "caches")
        (server / "backends").symlink_to(place_backends(Home(home_dir())))
        (server / "TRITON_VERSION").write_text("2.51.0\n")
        # As the linker's configuration of the image does.
        monkeypatch.setenv("LD_LIBRARY_PATH", str(server_folder().parents[1] / "nvidia_pytriton.libs"))
        monkeypatch.setenv(SERVER, str(server))
        yield


def socket_of(stack: StackState) -> Path:
    return stack.sockets["triton_grpc"]


def mesh_user_of(stack: StackState) -> int:
    """User id of Triton's process, which is never root's."""
    pid = stack.children["triton"].pid
    assert pid is not None
    user = psutil.Process(pid).uids().real
    assert user not in (0, STRANGER)
    return user


def malicious(proof: Path) -> str:
    """A model whose import writes `proof`."""
    return f"open({str(proof)!r}, 'w').write('code ran')\nclass TritonPythonModel: pass\n"


def test_no_port_is_open(stack: StackState) -> None:
    open_ports = [
        each.laddr
        for process in tagged(stack.state)
        for each in process.net_connections("inet")
        if each.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)
    ]
    assert open_ports == []


def test_a_web_page_cannot_load_a_model(stack: StackState) -> None:
    """A browser's request sent to Triton's socket: there is no HTTP, even for a user who may open the socket."""
    proof = stack.state / "proof-of-the-page"  # Triton may write here
    body = json.dumps(
        {
            "parameters": {
                "config": _CONFIG,
                "file:1/model.py": base64.b64encode(malicious(proof).encode()).decode(),
            }
        }
    ).encode()
    head = (
        "POST /v2/repository/models/evil/load HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n"
        f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.socket(socket.AF_UNIX) as browser:
        browser.settimeout(20)
        browser.connect(str(socket_of(stack)))
        browser.sendall(head.encode() + body)
        answer = b""
        try:
            while part := browser.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
    assert not answer.startswith(b"HTTP/1")
    assert not proof.exists()


def test_another_user_cannot_reach_it(stack: StackState) -> None:
    path = socket_of(stack)
    assert path.is_socket()
    assert not connects(path)
    assert path.parent.stat().st_uid == mesh_user_of(stack)


def test_what_the_wall_keeps_out_would_run_code(client: Any, stack: StackState) -> None:
    """The reason for closing the socket: the same request by the mesh's own user would run code."""
    proof = stack.state / "proof"
    client.load_model("evil", config=_CONFIG, files={"file:1/model.py": malicious(proof).encode()}, client_timeout=60)
    assert proof.read_text() == "code ran"


@pytest.mark.parametrize(
    "call",
    [
        lambda server: server.register_system_shared_memory("region", "/region", 64),
        lambda server: server.register_cuda_shared_memory("region", base64.b64encode(b"handle"), 0, 64),
        lambda server: server.unregister_system_shared_memory(),
        lambda server: server.get_system_shared_memory_status(),
        lambda server: server.update_trace_settings(settings={"trace_file": "/tmp/trace"}),
        lambda server: server.get_trace_settings(),
        lambda server: server.update_log_settings({"log_file": "/tmp/log"}),
        lambda server: server.get_log_settings(),
    ],
)
def test_shared_memory_traces_and_logs_are_refused_to_all(client: Any, call: Callable[[Any], object]) -> None:
    with pytest.raises(InferenceServerException, match="protocol is restricted"):
        call(client)


def test_a_server_that_the_environment_names_runs_models_behind_the_same_walls(installed_server: None) -> None:
    model = "import tidemill, openvino_genai, numpy\nclass TritonPythonModel: pass\n"  # packages of the mesh
    with open_folder() as folder, running_parts({"triton"}, folder / "state", own=True) as stack:
        pid = stack.children["triton"].pid
        assert pid is not None
        assert "/tritonserver/bin/tritonserver" in psutil.Process(pid).cmdline()[0]
        assert doors_open(psutil.Process(pid).cmdline()) == []
        with triton.InferenceServerClient(stack.triton_grpc) as server:
            server.load_model("own", config=_CONFIG, files={"file:1/model.py": model.encode()}, client_timeout=120)
            assert server.is_model_ready("own")
