"""Settings that every service shares; read from `TIDEMILL_*` by a service's `__main__` only."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.kit.bus.brokers import Brokers, ProducerClient
from services.kit.errors import InvalidArgumentError

UNIX = "unix:"
_LONGEST_SOCKET = 107  # bytes: sun_path in sys/un.h, without the zero at its end


TERMINATION_LOG = "TIDEMILL_TERMINATION_LOG"
"""Environment variable: the file to which a failing process writes the reason, as JSON, for its supervisor."""


def _address(value: str) -> str:
    return _socket(value) if value.startswith(UNIX) else _port(value)


def _port(value: str) -> str:
    host, _, port = value.rpartition(":")
    # gRPC itself accepts a larger port and listens on another one.
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"must be host:port with a port up to 65535, not {value!r}")
    return value


def _socket(value: str) -> str:
    path = value.removeprefix(UNIX)
    if not path.startswith("/") or path.startswith("//"):
        raise ValueError(f"must be unix: and the absolute path of a socket, not {value!r}")
    if len(os.fsencode(path)) > _LONGEST_SOCKET:
        raise ValueError(f"must be a path of at most {_LONGEST_SOCKET} bytes, as sockets have, not {value!r}")
    return value


def _otlp(value: str) -> str:
    return _socket(value) if value.startswith(UNIX) else _endpoint(value)


def _endpoint(value: str) -> str:
    scheme, _, rest = value.partition("://")
    if value and (scheme not in ("http", "https") or not rest):
        raise ValueError(f"must be a URL such as http://127.0.0.1:4317, not {value!r}")
    return value


def _level(value: str) -> str:
    if value.upper() not in logging.getLevelNamesMapping():
        raise ValueError(f"must be one of DEBUG, INFO, WARNING, ERROR and CRITICAL, not {value!r}")
    return value.upper()


Address = Annotated[str, AfterValidator(_address)]
"""host:port of this machine, port 0 for any free one, or unix:/path of a socket."""
PortAddress = Annotated[str, AfterValidator(_port)]
"""host:port of this machine; port 0 for any free one."""
OtlpEndpoint = Annotated[str, AfterValidator(_otlp)]
"""URL of an OTLP/gRPC receiver, or unix:/path of its socket."""
Endpoint = Annotated[str, AfterValidator(_endpoint)]
"""URL of a server."""
LogLevel = Annotated[str, AfterValidator(_level)]
"""Name of a level of Python's logging."""


class ServiceSettings(BaseSettings):
    """Shared fields; a service's own settings derive from it."""

    model_config = SettingsConfigDict(env_prefix="TIDEMILL_", frozen=True, extra="ignore")

    bind: Address = Field("127.0.0.1:0", description="host:port or unix:/path of the gRPC server")
    metrics_bind: PortAddress | None = Field(None, description="host:port of the Prometheus endpoint; none when unset")
    metrics_token_file: Path | None = Field(
        None, description="file with the token that Prometheus must show as `Authorization: Bearer`; none when unset"
    )
    kafka_bootstrap: str = Field("127.0.0.1:9092", description="host:port of the Kafka brokers, comma-separated")
    kafka_user: str | None = Field(None, description="user at the brokers (SCRAM-SHA-512); none when unset")
    kafka_password_file: Path | None = Field(None, description="file with the user's password")
    kafka_tls: bool = Field(False, description="whether the brokers are reached over TLS")
    kafka_ca_file: Path | None = Field(
        None, description="PEM file of the CA certificates that sign the brokers' certificates"
    )
    kafka_producer: ProducerClient = Field(ProducerClient.LIBRDKAFKA, description="library that sends to Kafka")
    database_url: str = Field("sqlite:///tidemill.sqlite", description="SQLAlchemy URL of the service's database")
    # Not a fixed folder under /tmp, where another user could be the first to create it.
    artifacts_url: str = Field(
        default_factory=lambda: (state_dir() / "artifacts").as_uri(),
        description="fsspec URL of the artefact store; `artifacts` in the folder of the mesh when unset",
    )
    otlp_endpoint: OtlpEndpoint | None = Field(
        None,
        description="OTLP/gRPC endpoint: http://, https:// (shows the peer certificate) or unix:/path;"
        " nothing is sent when unset",
    )
    traces_per_s: float = Field(
        10.0,
        ge=0,
        description="traces a second that begin in one process and are sent, ten seconds' worth at once; inf sends all."
        " Errors, slow requests and traces that callers sample are always sent",
    )
    slow_trace_s: float = Field(5.0, gt=0, description="seconds from which a request is slow, and always sent")
    log_level: LogLevel = Field("INFO", description="lowest level that is logged")
    state: Path = Field(default_factory=lambda: state_dir(), description="folder of the mesh, whose disk is watched")
    disk_reserve_bytes: int | None = Field(
        None,
        ge=0,
        description="without this much free space on the disk of `state`, no new data is accepted; when unset, 2 % of"
        " the disk, at least 1 and at most 10 GiB",
    )
    peer_cert: Path | None = Field(None, description="PEM file of this service's certificate, for TLS between services")
    peer_key: Path | None = Field(None, description="PEM file of its key")
    peer_ca: Path | None = Field(None, description="PEM file of the CA that signs the certificates of all services")
    ingest_address: str = Field("127.0.0.1:7101", description="host:port or unix:/path of the ingest service")
    cleaning_address: str = Field("127.0.0.1:7102", description="host:port or unix:/path of the cleaning service")
    training_address: str = Field("127.0.0.1:7103", description="host:port or unix:/path of the training service")
    inference_address: str = Field("127.0.0.1:7104", description="host:port or unix:/path of the inference service")
    pipeline_address: str = Field("127.0.0.1:7105", description="host:port or unix:/path of the pipeline service")
    telemetry_address: str = Field("127.0.0.1:7106", description="host:port or unix:/path of the telemetry service")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len({each is None for each in (self.peer_cert, self.peer_key, self.peer_ca)}) > 1:
            raise ValueError("set TIDEMILL_PEER_CERT, TIDEMILL_PEER_KEY and TIDEMILL_PEER_CA together")
        return self

    @property
    def peer_files(self) -> tuple[Path, Path, Path] | None:
        """Certificate, key and authority for mutual TLS between services; None without TLS."""
        if self.peer_cert is None or self.peer_key is None or self.peer_ca is None:
            return None
        return self.peer_cert, self.peer_key, self.peer_ca

    @property
    def brokers(self) -> Brokers:
        """How to reach Kafka."""
        return Brokers(
            self.kafka_bootstrap,
            self.kafka_user,
            self.kafka_password_file,
            self.kafka_tls,
            self.kafka_ca_file,
            self.kafka_producer,
        )


S = TypeVar("S", bound=BaseSettings)


def load_settings(kind: type[S]) -> S:
    """Reads the settings from the environment; exits with one sentence for each wrong variable."""
    try:
        return kind()
    except ValidationError as error:
        for item in error.errors():
            variable = "TIDEMILL_" + "_".join(str(part) for part in item["loc"]).upper()
            why = item["msg"].removeprefix("Value error, ")
            # An error about several variables has no location.
            sys.stderr.write(f"{variable}: {why}\n" if item["loc"] else f"{why}\n")
        sys.exit(1)


def split_list(text: str) -> list[str]:
    """The items of a setting that holds several."""
    return [item.strip() for item in text.split(",") if item.strip()]


def home_dir() -> Path:
    """Folder of downloads and prepared parts: TIDEMILL_HOME, else `tidemill` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidemill"
    return Path(os.environ.get("TIDEMILL_HOME") or default).expanduser().absolute()


def state_dir() -> Path:
    """Folder of one mesh's state: TIDEMILL_STATE, else `tidemill` in the user's state folder."""
    default = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tidemill"
    return Path(os.environ.get("TIDEMILL_STATE") or default).expanduser().absolute()


def disk_reserve() -> int | None:
    """TIDEMILL_DISK_RESERVE_BYTES for programs other than services; None when unset.

    Raises:
        InvalidArgumentError: it is not a number of bytes.
    """
    text = os.environ.get("TIDEMILL_DISK_RESERVE_BYTES") or ""
    if text and not (text.isascii() and text.isdecimal()):
        raise InvalidArgumentError(f"TIDEMILL_DISK_RESERVE_BYTES must be a number of bytes, not {text!r}.")
    return int(text) if text else None
