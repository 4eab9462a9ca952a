"""Spans and logs reach a receiver on another machine over TLS, also after certificates were renewed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from infra.stack.layout import python_path
from services.kit.tls import ServerTls, TlsFiles
from tests.faults.test_door_tls import Authority
from tests.waiting import eventually

# Sends one span and one log line for each line that it reads.
_SENDER = """
import logging, sys
from pathlib import Path
from opentelemetry import trace
from services.kit.telemetry.setup import start_telemetry
telemetry = start_telemetry("sender", sys.argv[1], peer_files=tuple(map(Path, sys.argv[2:])) or None)
for line in sys.stdin:
    with trace.get_tracer("sender").start_as_current_span(line.strip()):
        logging.getLogger("sender").info(line.strip())
    telemetry.tracer_provider.force_flush(10_000)
    telemetry.logger_provider.force_flush(10_000)
"""
# The same for the code that runs inside Triton, where environment variables name the files.
_MODEL = """
import json, sys
from services.inference.triton_models.tracing import ModelTracing, end_span
tracing = ModelTracing("mood", "1", sys.argv[1], print)
for line in sys.stdin:
    end_span(tracing.start(line.strip(), json.dumps({"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})), {})
    tracing._provider.force_flush(10_000)
"""


class Receiver:
    """Receives spans and logs over mutual TLS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.make("mesh")
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self.authority.pem)
        self.tls = ServerTls(TlsFiles(*self.issue("receiver"), self.ca))
        self.spans: set[str] = set()
        self.logs: set[str] = set()
        self.endpoint = ""

    def issue(self, name: str) -> tuple[Path, Path]:
        """Issues a certificate of the current authority and its key; replaces an earlier one of this name."""
        (self.folder / name).mkdir(exist_ok=True)
        return self.authority.issue(name, self.folder / name)

    async def Export(self, request: object, _context: object) -> object:  # noqa: N802 - gRPC's name
        """Of either service."""
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            self.spans |= {
                span.name for each in request.resource_spans for scope in each.scope_spans for span in scope.spans
            }
            return trace_service_pb2.ExportTraceServiceResponse()
        assert isinstance(request, logs_service_pb2.ExportLogsServiceRequest)
        self.logs |= {
            line.body.string_value
            for each in request.resource_logs
            for scope in each.scope_logs
            for line in scope.log_records
        }
        return logs_service_pb2.ExportLogsServiceResponse()


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[Receiver]:
    made, server = Receiver(tmp_path), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(made, server)  # type: ignore[no-untyped-call]
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(made, server)  # type: ignore[no-untyped-call]
    port = server.add_secure_port("127.0.0.1:0", made.tls.grpc_credentials())
    made.endpoint = f"https://127.0.0.1:{port}"
    await server.start()
    try:
        yield made
    finally:
        await server.stop(0)


class Sender:
    """A process that sends on request."""

    def __init__(self, code: str, *arguments: str | Path, files: Iterable[Path] = ()) -> None:
        names = ("TIDEMILL_PEER_CERT", "TIDEMILL_PEER_KEY", "TIDEMILL_PEER_CA")
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": python_path(), **dict(zip(names, map(str, files), strict=False))},
            text=True,
        )

    def send(self, text: str) -> None:
        """Sends one span with this name and, from a service's process, one log line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


async def test_spans_and_logs_arrive_over_tls_with_each_new_certificate(receiver: Receiver) -> None:
    sender = Sender(_SENDER, receiver.endpoint, *receiver.issue("sender"), receiver.ca)
    try:
        sender.send("first")
        await eventually(lambda: "first" in receiver.spans and "first" in receiver.logs, "the first span and line")
        _change_authority(receiver)
        receiver.issue("sender")
        sent = 0

        def arrived() -> bool:
            nonlocal sent
            sent += 1
            sender.send(f"renewed {sent}")
            return any(each.startswith("renewed") for each in receiver.spans & receiver.logs)

        await eventually(arrived, "a span and a line with the new certificate")
    finally:
        sender.end()


async def test_a_model_inside_triton_does_the_same(receiver: Receiver) -> None:
    sender = Sender(_MODEL, receiver.endpoint, files=(*receiver.issue("triton"), receiver.ca))
    try:
        sender.send("first")
        await eventually(lambda: "triton.mood.first" in receiver.spans, "the first span")
        _change_authority(receiver)
        receiver.issue("triton")
        sent = 0

        def arrived() -> bool:
            nonlocal sent
            sent += 1
            sender.send(f"renewed{sent}")
            return any("renewed" in each for each in receiver.spans)

        await eventually(arrived, "a span with the new certificate")
    finally:
        sender.end()


def _change_authority(receiver: Receiver) -> None:
    """Gives the receiver a certificate of a new authority, whose callers it only accepts from now on."""
    receiver.authority = Authority.make("mesh")
    receiver.ca.write_bytes(receiver.authority.pem)
    receiver.issue("receiver")
    assert receiver.tls.reload()


async def test_what_has_no_certificate_of_the_mesh_reaches_nothing(receiver: Receiver) -> None:
    strangers = [
        Sender(_SENDER, receiver.endpoint),
        Sender(_SENDER, receiver.endpoint.replace("https", "http")),
        Sender(_SENDER, receiver.endpoint, *Authority.make("other").issue("stranger", receiver.folder), receiver.ca),
    ]
    known = Sender(_SENDER, receiver.endpoint, *receiver.issue("sender"), receiver.ca)
    try:
        for each in strangers:
            each.send("stranger")
        await asyncio.sleep(2)  # they would be first
        known.send("known")
        await eventually(lambda: {"known"} == receiver.spans == receiver.logs, "what the mesh's own process sent")
    finally:
        for each in (*strangers, known):
            each.end()


def test_files_that_cannot_be_used_end_the_start_with_a_sentence(tmp_path: Path) -> None:
    certificate, key = Authority.make("mesh").issue("service", tmp_path)
    shutil.copy(certificate, tmp_path / "ca.pem")
    key.unlink()
    ended = subprocess.run(
        [sys.executable, "-m", "services.telemetry"],
        env={
            **os.environ,
            "PYTHONPATH": python_path(),
            "TIDEMILL_BIND": "127.0.0.1:0",
            "TIDEMILL_OTLP_ENDPOINT": "https://127.0.0.1:9",
            "TIDEMILL_PEER_CERT": str(certificate),
            "TIDEMILL_PEER_KEY": str(key),
            "TIDEMILL_PEER_CA": str(tmp_path / "ca.pem"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    last = json.loads(ended.stderr.strip().splitlines()[-1])
    assert f"{key} cannot be read" in last["message"]
