"""What a process logs arrives at its receiver, whatever one of its lines is like."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as pb
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as stubs

from infra.stack.layout import python_path
from services.kit.telemetry.setup import MAX_ATTRIBUTE, MAX_LOG_TEXT

_SCRIPT = r"""
import logging, sys
from services.kit.telemetry.setup import start_telemetry
telemetry = start_telemetry("probe", sys.argv[1])
logger = logging.getLogger("probe")
logger.info("before")
logger.info("a name \udcff that is no UTF-8")
logger.info("%d is no number", "x")
try:
    raise ValueError("\udcff")
except ValueError:
    logger.exception("it broke")
logger.info("after")
telemetry.shutdown()
"""


class Receiver(stubs.LogsServiceServicer):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.attributes: list[str] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for of_resource in request.resource_logs:
            for of_scope in of_resource.scope_logs:
                self.lines += [record.body.string_value for record in of_scope.log_records]
                self.attributes += [item.value.string_value for r in of_scope.log_records for item in r.attributes]
        return pb.ExportLogsServiceResponse()


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    """A receiver and its endpoint."""
    server, servicer = grpc.server(futures.ThreadPoolExecutor(2)), Receiver()
    stubs.add_LogsServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_line_that_cannot_be_sent_takes_no_other_along(receiver: tuple[Receiver, str]) -> None:
    servicer, endpoint = receiver
    ended = subprocess.run(
        [sys.executable, "-c", _SCRIPT, endpoint],
        env={**os.environ, "PYTHONPATH": python_path()},
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert servicer.lines == ["before", "a name \\udcff that is no UTF-8", "it broke", "after"]


_LONG = r"""
import json, logging, sys
from opentelemetry import trace
from services.kit.telemetry.setup import start_telemetry
telemetry = start_telemetry("probe", sys.argv[1])
logger = logging.getLogger("probe")
logger.info("a" * 60_000 + " the end")
logger.info("with one", extra={"extra": "b" * 60_000})
try:
    raise ValueError("c" * 60_000)
except ValueError:
    logger.exception("it broke")
with trace.get_tracer("t").start_as_current_span("s") as span:
    span.set_attribute("long", "d" * 60_000)
    span.record_exception(ValueError("e" * 60_000))
values = [*span.attributes.values(), *(value for event in span.events for value in event.attributes.values())]
print(max(len(value) for value in values))
telemetry.shutdown()
"""


def test_nothing_that_is_sent_or_logged_is_longer_than_its_bound(receiver: tuple[Receiver, str]) -> None:
    servicer, endpoint = receiver
    ended = subprocess.run(
        [sys.executable, "-c", _LONG, endpoint],
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert int(ended.stdout) <= MAX_ATTRIBUTE
    assert len(servicer.lines) == 3
    assert all(len(text) < MAX_LOG_TEXT + 100 for text in (*servicer.lines, *servicer.attributes))
    assert servicer.lines[0].endswith(" the end")
    assert all(len(line) < 3 * MAX_LOG_TEXT for line in ended.stderr.splitlines())
