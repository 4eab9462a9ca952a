"""OTLP exporters that show this process's certificate to a receiver on another machine.

OpenTelemetry's exporters read their certificates once; ours take new files without a restart.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import grpc
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from services.kit.errors import FailedPreconditionError
from services.kit.tls import RELOAD_S, Certificates, TlsFiles, file_marks

logger = logging.getLogger(__name__)

# The exporter retries the current batch while the receiver, or the store behind it, restarts.
_TIMEOUT_S = 60.0


class _Closes(Protocol):
    def shutdown(self) -> None: ...


E = TypeVar("E", bound=_Closes)


class _Renewing(Generic[E]):
    """The exporter with the newest certificate files that fit together."""

    def __init__(self, files: TlsFiles, make: Callable[[grpc.ChannelCredentials], E]) -> None:
        self._files, self._make = files, make
        self._marks = file_marks(files)
        self._looked = time.monotonic()
        self._lock = threading.Lock()
        self._exporter = make(_credentials(Certificates.read(files)))

    def get(self) -> E:
        """The exporter for the next batch; a new one if the files have changed."""
        with self._lock:
            if time.monotonic() - self._looked < RELOAD_S:
                return self._exporter
            self._looked = time.monotonic()
            marks = file_marks(self._files)
            if marks == self._marks:
                return self._exporter
            try:
                read = Certificates.read(self._files)
            except FailedPreconditionError as error:  # such as a certificate whose key is still to come
                logger.warning("the new TLS files cannot be used yet, keeping the old ones: %s", error.message)
                return self._exporter
            self._marks = marks
            old, self._exporter = self._exporter, self._make(_credentials(read))
        old.shutdown()
        return self._exporter

    def shutdown(self) -> None:
        """Shuts the exporter down, which also ends a batch that is being sent."""
        self._exporter.shutdown()


def _credentials(files: Certificates) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(files.client_ca, files.key, files.chain)


class _PeerSpanExporter(SpanExporter):
    def __init__(self, endpoint: str, files: TlsFiles) -> None:
        self._newest = _Renewing(
            files, lambda shown: OTLPSpanExporter(endpoint=endpoint, credentials=shown, timeout=_TIMEOUT_S)
        )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._newest.get().export(spans)

    def shutdown(self) -> None:
        self._newest.shutdown()


class _PeerLogExporter(LogRecordExporter):
    def __init__(self, endpoint: str, files: TlsFiles) -> None:
        self._newest = _Renewing(
            files, lambda shown: OTLPLogExporter(endpoint=endpoint, credentials=shown, timeout=_TIMEOUT_S)
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
    if endpoint.startswith("https://"):
        if files is not None:
            return _PeerSpanExporter(endpoint, files), _PeerLogExporter(endpoint, files)
        return (
            OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S),
            OTLPLogExporter(endpoint=endpoint, timeout=_TIMEOUT_S),
        )
    return (
        OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=_TIMEOUT_S),
        OTLPLogExporter(endpoint=endpoint, insecure=True, timeout=_TIMEOUT_S),
    )
