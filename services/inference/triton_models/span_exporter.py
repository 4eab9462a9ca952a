"""Sends a model's spans: in clear on this machine, over mutual TLS to a receiver on another one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

# As for the services: certificate, key and authority.
_FILES = ("TIDEMILL_PEER_CERT", "TIDEMILL_PEER_KEY", "TIDEMILL_PEER_CA")


def open_exporter(endpoint: str) -> SpanExporter:
    """An exporter to an OTLP/gRPC endpoint.

    Args:
        endpoint: `unix:/path`, `http://host:port`, or `https://host:port`, which takes the certificates that Triton's
            environment names, else OpenTelemetry's own variables.
    """
    named = [os.environ[each] for each in _FILES if os.environ.get(each)]
    if endpoint.startswith("https://") and len(named) == len(_FILES):
        return _PeerExporter(endpoint, *map(Path, named))
    return OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))


class _PeerExporter(SpanExporter):
    """Shows a certificate that is renewed while the model runs."""

    def __init__(self, endpoint: str, certificate: Path, key: Path, authority: Path) -> None:
        self._endpoint, self._files = endpoint, (authority, key, certificate)
        self._marks, self._exporter = self._open()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._looks() != self._marks:
            try:
                marks, exporter = self._open()
            except OSError:
                pass  # The files are being replaced; the old ones are good for this batch.
            else:
                self._exporter.shutdown()
                self._marks, self._exporter = marks, exporter
        return self._exporter.export(spans)

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def _looks(self) -> list[tuple[int, int] | None]:
        return [(each.stat().st_mtime_ns, each.stat().st_ino) if each.exists() else None for each in self._files]

    def _open(self) -> tuple[list[tuple[int, int] | None], OTLPSpanExporter]:
        marks = self._looks()
        shown = grpc.ssl_channel_credentials(*(each.read_bytes() for each in self._files))
        return marks, OTLPSpanExporter(endpoint=self._endpoint, credentials=shown)
