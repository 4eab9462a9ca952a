"""OTLP exporters that show this process's certificate to a receiver on another machine.

OpenTelemetry's exporters read their certificates once; ours take new files without a restart.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import grpc
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from services.kit.tls import ClientFiles, TlsFiles

# A batch is retried while the receiver, or the store behind it, restarts: a busy Elasticsearch takes 44 s. The exporter
# itself gives up after six attempts, half a minute in all; so gRPC makes several of each.
_TIMEOUT_S = 240.0
_RETRY: Mapping[str, Any] = {
    "maxAttempts": 5,
    "initialBackoff": "2s",
    "maxBackoff": "16s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_SERVICE_CONFIG = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": _RETRY}]})
_PATIENCE: Mapping[str, Any] = {
    "timeout": _TIMEOUT_S,
    "channel_options": (("grpc.service_config", _SERVICE_CONFIG),),
}


class _Closes(Protocol):
    def shutdown(self) -> None: ...


E = TypeVar("E", bound=_Closes)


class _Renewing(Generic[E]):
    """The exporter with the newest certificate files that fit together."""

    def __init__(self, files: TlsFiles, make: Callable[[grpc.ChannelCredentials], E]) -> None:
        self._files, self._make = ClientFiles(files), make
        self._lock = threading.Lock()
        self._exporter = make(self._files.read().channel_credentials())

    def get(self) -> E:
        """The exporter for the next batch; a new one if the files have changed."""
        with self._lock:
            read = self._files.changed()
            if read is None:
                return self._exporter
            old, self._exporter = self._exporter, self._make(read.channel_credentials())
        old.shutdown()
        return self._exporter

    def shutdown(self) -> None:
        """Shuts the exporter down, which also ends a batch that is being sent."""
        self._exporter.shutdown()


class _PeerSpanExporter(SpanExporter):
    def __init__(self, endpoint: str, files: TlsFiles) -> None:
        self._newest = _Renewing(
            files, lambda shown: OTLPSpanExporter(endpoint=endpoint, credentials=shown, **_PATIENCE)
        )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._newest.get().export(spans)

    def shutdown(self) -> None:
        self._newest.shutdown()


class _PeerLogExporter(LogRecordExporter):
    def __init__(self, endpoint: str, files: TlsFiles) -> None:
        self._newest = _Renewing(
            files, lambda shown: OTLPLogExporter(endpoint=endpoint, credentials=shown, **_PATIENCE)
        )

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        return self._newest.get().export(batch)

    def shutdown(self) -> None:
        self._newest.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True  # an export has ended when it returns


def open_exporters(endpoint: str, files: TlsFiles | None) -> tuple[SpanExporter, LogRecordExporter]:
    """Exporters of spans and logs.

    Args:
        endpoint: `unix:/path`, `http://host:port`, or `https://host:port` for TLS.
        files: certificates for TLS. Without them OpenTelemetry's own variables apply
            (`OTEL_EXPORTER_OTLP_CERTIFICATE` and the like), else the machine's certificate authorities.

    Raises:
        FailedPreconditionError: the files cannot be used; names the file.
    """
    is_secure = endpoint.startswith("https://")
    if is_secure and files is not None:
        return _PeerSpanExporter(endpoint, files), _PeerLogExporter(endpoint, files)
    return (
        OTLPSpanExporter(endpoint=endpoint, insecure=not is_secure, **_PATIENCE),
        OTLPLogExporter(endpoint=endpoint, insecure=not is_secure, **_PATIENCE),
    )
