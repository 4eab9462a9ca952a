"""Starts and stops the telemetry of a process: traces and logs over OTLP/gRPC, logs also on standard error.

The console log is ECS JSON, one object per line, so that its file can be shipped as it is.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
import threading
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from opentelemetry import trace
from opentelemetry._logs import set_logger_provider
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs import LoggerProvider, LogRecordLimits
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from services.kit.telemetry.exporters import open_exporters
from services.kit.telemetry.sampling import KeepingProcessor, RateLimitedSampler, Sampling
from services.kit.telemetry.schema import ECS_VERSION
from services.kit.tls import TlsFiles

# Callers' input may end up in a span or a log line, so each is limited, in characters.
MAX_ATTRIBUTE = 4096
MAX_LOG_TEXT = 16_384
_SPAN_LIMITS = SpanLimits(max_attributes=128, max_events=128, max_links=128, max_attribute_length=MAX_ATTRIBUTE)
_LOG_LIMITS = LogRecordLimits(max_attributes=128, max_attribute_length=MAX_LOG_TEXT)

# Libraries that log every poll at INFO.
_CHATTY = ("kafka", "httpx", "httpcore", "alembic", "urllib3", "elastic_transport", "fsspec", "asyncio", "filelock")


def bounded(text: str, limit: int = MAX_LOG_TEXT) -> str:
    """The text, or its beginning and end: a message begins with what happened, a stack trace ends with it."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}… ({len(text) - 2 * half:,} characters left out) …{text[-half:]}"


class EcsFormatter(logging.Formatter):
    """One log record as one line of JSON with the Elastic Common Schema's names."""

    def __init__(self, service_name: str) -> None:
        super().__init__()
        self._service_name = service_name

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        entry: dict[str, object] = {
            "@timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "log.level": record.levelname.lower(),
            "message": bounded(record.getMessage()),
            "service.name": self._service_name,
            "log.logger": record.name,
            "process.pid": record.process,
            "ecs.version": ECS_VERSION,
        }
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            entry["trace.id"] = f"{context.trace_id:032x}"
            entry["span.id"] = f"{context.span_id:016x}"
        if record.exc_info and record.exc_info[0] is not None:
            entry["error.type"] = record.exc_info[0].__name__
            entry["error.message"] = bounded(str(record.exc_info[1]))
            entry["error.stack_trace"] = bounded("".join(traceback.format_exception(*record.exc_info)))
        return json.dumps(entry, ensure_ascii=False)


class _OtlpHandler(LoggingHandler):
    """Exports log records; a record that cannot be encoded does not affect other records."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        try:
            message = record.getMessage()
            sendable = bounded(message).encode("utf-8", "backslashreplace").decode()
            if sendable != message:
                # Too long, or a name that is not UTF-8: encoding would fail later, for the whole batch.
                record = copy.copy(record)
                record.msg, record.args = sendable, ()
            super().emit(record)
        except Exception:
            self.handleError(record)


_QUEUE = 16_384
_SAMPLING = Sampling()
# How long the end of a process waits for a receiver that does not respond.
_LAST_EXPORT_S = 5.0


@dataclass(frozen=True, slots=True)
class Telemetry:
    """The running providers of a process, and where they export to."""

    tracer_provider: TracerProvider
    logger_provider: LoggerProvider
    exporters: tuple[SpanExporter | LogRecordExporter, ...] = ()

    def shutdown(self) -> None:
        """Exports what is left, within a few seconds."""
        give_up = threading.Timer(_LAST_EXPORT_S, self._give_up)
        give_up.daemon = True
        give_up.start()
        self.tracer_provider.shutdown()
        self.logger_provider.shutdown()
        give_up.cancel()

    def _give_up(self) -> None:
        for exporter in self.exporters:
            exporter.shutdown()


def start_telemetry(
    service_name: str,
    otlp_endpoint: str | None,
    log_level: str = "INFO",
    peer_files: tuple[Path, Path, Path] | None = None,
    sampling: Sampling = _SAMPLING,
) -> Telemetry:
    """Configures logging and tracing of this process; call it once, before anything else.

    Args:
        service_name: `service.name` of all exported data.
        otlp_endpoint: for example `https://logs.example:4317` or `unix:/path`; None exports nothing.
        log_level: lowest level that is logged.
        peer_files: certificate, key and authority, for an endpoint with TLS; read again when they change.
        sampling: which traces are exported.

    Raises:
        FailedPreconditionError: the files cannot be used; names the file. Logging to the console works by then.
    """
    resource = Resource.create(
        {"service.name": service_name, "service.namespace": "tidemill", "service.instance.id": str(os.getpid())}
    )
    sampler = RateLimitedSampler(sampling.traces_per_s)
    tracer_provider = TracerProvider(resource=resource, span_limits=_SPAN_LIMITS, sampler=sampler)
    logger_provider = LoggerProvider(resource=resource, log_record_limits=_LOG_LIMITS)
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(log_level.upper())
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(EcsFormatter(service_name))
    root.addHandler(console)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns when its own loop takes 0.1 s, which happens all the time on a busy machine.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
    # It warns of every login without TLS, though SCRAM does not reveal the password.
    logging.getLogger("kafka.net.sasl.scram").setLevel(logging.ERROR)
    # The exporter's own errors must not be exported.
    logging.getLogger("opentelemetry").propagate = False
    logging.getLogger("opentelemetry").addHandler(console)
    exporters: tuple[SpanExporter | LogRecordExporter, ...] = ()
    if otlp_endpoint:
        spans, logs = open_exporters(otlp_endpoint, TlsFiles(*peer_files) if peer_files is not None else None)
        exporters = (spans, logs)
        batches = BatchSpanProcessor(spans, schedule_delay_millis=1000, max_queue_size=_QUEUE)
        tracer_provider.add_span_processor(KeepingProcessor(batches, sampling.slow_s))
        logger_provider.add_log_record_processor(
            BatchLogRecordProcessor(logs, schedule_delay_millis=1000, max_queue_size=_QUEUE)
        )
        root.addHandler(_OtlpHandler(logger_provider=logger_provider))
    trace.set_tracer_provider(tracer_provider)
    set_logger_provider(logger_provider)
    return Telemetry(tracer_provider, logger_provider, exporters)
