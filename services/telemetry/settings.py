"""Settings of the telemetry service; read by `__main__` only."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.kit.config import Endpoint, ServiceSettings


class TelemetrySettings(ServiceSettings):
    """The shared fields and those of telemetry."""

    elasticsearch_url: Endpoint = Field("http://127.0.0.1:9200", description="URL of Elasticsearch 8")
    elasticsearch_user: str | None = Field(None, description="user at Elasticsearch (HTTP Basic); none when unset")
    elasticsearch_password_file: Path | None = Field(None, description="file with the user's password")
    telemetry_queue_bytes: int = Field(
        64 * 1024 * 1024, gt=0, description="bytes of documents that wait for Elasticsearch before senders are refused"
    )
    telemetry_bulk_documents: int = Field(2000, gt=0, le=10_000, description="most documents of one bulk")
    telemetry_bulk_bytes: int = Field(5 * 1024 * 1024, gt=0, description="most bytes of one bulk")
    telemetry_bulk_wait_s: float = Field(
        0.1, ge=0, le=5, description="seconds that the first document of a bulk waits for others"
    )
    telemetry_patience_s: float = Field(
        5.0, gt=0, description="seconds that a sender waits before it is asked to retry"
    )
    telemetry_retention_days: int = Field(
        14, ge=1, le=3650, description="days that logs and traces are kept, today's included"
    )
