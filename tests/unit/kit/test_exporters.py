"""What is sent while the receiver, or its store, does not answer for longer than OpenTelemetry's exporters wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry._logs import SeverityNumber
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as pb
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as stubs
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

from services.kit.telemetry.exporters import open_exporters
from tests.waiting import wait_until


class Receiver(stubs.LogsServiceServicer):
    """Answers as telemetry does while Elasticsearch does not answer."""

    def __init__(self) -> None:
        self.away_until = 0.0
        self.asked = 0
        self.lines: list[str] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        stubs.add_LogsServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked += 1
        if time.monotonic() < self.away_until:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Elasticsearch does not answer.")
        for resource in request.resource_logs:
            self.lines += [each.body.string_value for scope in resource.scope_logs for each in scope.log_records]
        return pb.ExportLogsServiceResponse()

    def stop(self) -> None:
        self._server.stop(None)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.stop()


def processor_to(receiver: Receiver) -> tuple[LoggerProvider, Any]:
    spans, logs = open_exporters(f"http://127.0.0.1:{receiver.port}", None)
    spans.shutdown()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(logs, schedule_delay_millis=50))
    return provider, logs


def say(provider: LoggerProvider, line: str) -> None:
    provider.get_logger("test").emit(body=line, severity_number=SeverityNumber.INFO, timestamp=time.time_ns())


@pytest.mark.slow
def test_a_store_that_is_away_for_three_quarters_of_a_minute_loses_no_line(receiver: Receiver) -> None:
    receiver.away_until = time.monotonic() + 45
    provider, _ = processor_to(receiver)
    say(provider, "kept")
    wait_until(lambda: "kept" in receiver.lines, "the line", 120)
    assert receiver.asked > 6
    provider.shutdown()


def test_an_exporter_that_is_closed_does_not_go_on_trying(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.away_until = time.monotonic() + 600
    provider, exporter = processor_to(receiver)
    caplog.set_level(logging.CRITICAL, "opentelemetry")
    say(provider, "lost")
    wait_until(lambda: receiver.asked >= 1, "the first attempt")
    exporter.shutdown()
    provider.shutdown()
    asked = receiver.asked
    time.sleep(3)
    assert receiver.asked == asked
