"""Settings that every service shares; read from `TIDEMILL_*` by a service's `__main__` only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.kit.errors import FieldViolation, InvalidArgumentError


class ServiceSettings(BaseSettings):
    """Shared fields; a service's own settings derive from it."""

    model_config = SettingsConfigDict(env_prefix="TIDEMILL_", frozen=True, extra="ignore")

    bind: str = Field("127.0.0.1:0", description="host:port of the gRPC server")
    metrics_bind: str | None = Field(None, description="host:port of the Prometheus endpoint; none when unset")
    kafka_bootstrap: str = Field("127.0.0.1:9092", description="host:port of the Kafka brokers, comma-separated")
    database_url: str = Field("sqlite:///tidemill.sqlite", description="SQLAlchemy URL of the service's database")
    artifacts_url: str = Field("file:///tmp/tidemill", description="fsspec URL of the artefact store")
    otlp_endpoint: str | None = Field(None, description="OTLP/gRPC endpoint; nothing is sent when unset")
    log_level: str = Field("INFO", description="lowest level that is logged")
    ingest_address: str = Field("127.0.0.1:7101", description="host:port of the ingest service")
    cleaning_address: str = Field("127.0.0.1:7102", description="host:port of the cleaning service")
    training_address: str = Field("127.0.0.1:7103", description="host:port of the training service")
    inference_address: str = Field("127.0.0.1:7104", description="host:port of the inference service")
    pipeline_address: str = Field("127.0.0.1:7105", description="host:port of the pipeline service")
    telemetry_address: str = Field("127.0.0.1:7106", description="host:port of the telemetry service")


S = TypeVar("S", bound=BaseSettings)


def load_settings(kind: type[S]) -> S:
    """Reads the settings from the environment.

    Raises:
        InvalidArgumentError: names each variable that is wrong and why.
    """
    try:
        return kind()
    except ValidationError as error:
        violations = [
            FieldViolation("TIDEMILL_" + "_".join(str(part) for part in item["loc"]).upper(), item["msg"])
            for item in error.errors()
        ]
        text = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
        raise InvalidArgumentError(f"The environment is not usable: {text}", violations=violations) from error


def home_dir() -> Path:
    """Folder of downloads and prepared parts: TIDEMILL_HOME, else `tidemill` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidemill"
    return Path(os.environ.get("TIDEMILL_HOME") or default).expanduser().absolute()


def state_dir() -> Path:
    """Folder of one mesh's state: TIDEMILL_STATE, else `tidemill` in the user's state folder."""
    default = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tidemill"
    return Path(os.environ.get("TIDEMILL_STATE") or default).expanduser().absolute()
