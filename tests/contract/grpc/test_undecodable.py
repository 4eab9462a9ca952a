"""Bytes that are not a valid message: every method of every service refuses them with a clear status."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import tidemill
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.kit.grpc.server import create_server, finish_server
from services.kit.telemetry.metrics import RequestMetrics
from tests.grpc_servers import serving

# Field number 0, which is never valid; as text it is not UTF-8 either.
JUNK = b"\xff\xff\xff\xff\x00"


def modules() -> Iterator[tuple[Any, Any]]:
    """Messages and stubs of our own services, of OTLP, which telemetry serves, and of KServe V2."""
    for root in tidemill.__path__:
        for path in sorted(Path(root).rglob("*_service_pb2.py")):
            name = ".".join(("tidemill", *path.relative_to(root).with_suffix("").parts))
            yield importlib.import_module(name), importlib.import_module(f"{name}_grpc")
    yield logs_service_pb2, logs_service_pb2_grpc
    yield trace_service_pb2, trace_service_pb2_grpc
    yield service_pb2, service_pb2_grpc


def methods() -> Iterator[tuple[str, MethodDescriptor]]:
    for module in (*(messages for messages, _ in modules()), health_pb2, reflection_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}", method


METHODS = dict(methods())


async def reads_all(requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
    async for _ in requests:
        pass
    return
    yield  # type: ignore[unreachable]  # makes it a stream


@asynccontextmanager
async def server(traced: bool = False) -> AsyncIterator[grpc.aio.Channel]:
    """A server with all services and the kit's interceptors, whose methods only read their request."""
    made = create_server(RequestMetrics("test"), traced=traced)
    names = []
    for messages, stubs in modules():
        for name, service in messages.DESCRIPTOR.services_by_name.items():
            servicer = getattr(stubs, f"{name}Servicer")()
            for method in service.methods:
                if method.client_streaming:
                    setattr(servicer, method.name, reads_all)
            getattr(stubs, f"add_{name}Servicer_to_server")(servicer, made)
            names.append(service.full_name)
    finished = finish_server(made, names)
    async with serving(made) as port:
        await finished.set_serving(True)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel


async def send(channel: grpc.aio.Channel, path: str, method: MethodDescriptor, data: bytes) -> Any:
    """One call of any kind, as bytes; its error."""

    async def requests() -> AsyncIterator[bytes]:
        yield data

    request: Any = requests() if method.client_streaming else data
    client, reply = ("stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming))
    call = getattr(channel, f"{client}_{reply}")(path)(request, timeout=20)
    try:
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"{path} took it")


def test_the_walk_meets_every_service() -> None:
    services = {path.rpartition("/")[0] for path in METHODS}
    assert len([name for name in services if name.startswith("/tidemill.")]) >= 6
    assert {method.client_streaming for method in METHODS.values()} == {True, False}


async def test_bytes_that_are_not_message_are_an_invalid_argument() -> None:
    async with server() as channel:
        for path, method in METHODS.items():
            error = await send(channel, path, method, JUNK)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, f"{path}: {error}"
            info = error_details_pb2.ErrorInfo()
            status = rpc_status.from_call(error)
            assert any(detail.Unpack(info) for detail in status.details)
            assert info.reason == "UNDECODABLE_REQUEST", path
            assert "Traceback" not in error.details()


@pytest.mark.parametrize("traced", [True, False])
async def test_a_path_that_names_no_method_is_unimplemented(traced: bool) -> None:
    async with server(traced) as channel:
        for path in ("/x", "/", "x", "/a/b/c", "//", "/tidemill.pipeline.v1.PipelineService/", "/é/x"):
            method = METHODS["/tidemill.pipeline.v1.PipelineService/GetCycle"]
            error = await send(channel, path, method, b"")
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED, f"{path}: {error}"
