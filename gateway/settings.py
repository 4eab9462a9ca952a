"""The gateway's settings; read from `TIDEMILL_*` by `gateway.__main__` only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from gateway.facade.messages import MessageLimits
from gateway.keys.usage import MAX_PROCESSES
from gateway.limits import HttpLimits
from services.kit.config import UNIX, ServiceSettings
from services.kit.grpc.server import MAX_MESSAGE_BYTES
from services.kit.tls import TlsFiles

_CACHE = re.compile(r"(valkeys?|rediss?)://[^/]")
_ORIGIN = re.compile(r"https?://[^/\s,?#]+")


class GatewaySettings(ServiceSettings):
    """Where the gateway listens, and which callers it accepts."""

    triton_grpc: str = Field("127.0.0.1:8001", description="host:port of Triton's gRPC")
    http_bind: str = Field("127.0.0.1:8080", description="host:port of the HTTP server")
    auth: bool = Field(
        True, description="whether requests need an API key; switch it off only where something else checks callers"
    )
    max_body_bytes: int = Field(64 * 1024 * 1024, ge=1024, description="largest body of an HTTP request")
    bodies_bytes: int = Field(
        256 * 1024 * 1024, ge=1024, description="memory for all current HTTP bodies; beyond it 503 with Retry-After"
    )
    header_timeout_s: float = Field(10.0, gt=0, description="time for the headers of an HTTP request to arrive")
    body_timeout_s: float = Field(
        20.0, gt=0, description="longest pause of an HTTP body, which must also arrive at 16 KiB/s on average"
    )
    max_connections: int = Field(2000, ge=1, description="open connections at each door")
    max_connections_per_client: int = Field(
        500, ge=1, description="open connections of one address at each door; raise it behind a reverse proxy"
    )
    connection_age_s: float = Field(
        300.0,
        ge=1,
        description="age, up to a tenth more or less, from which a connection is closed once its calls have ended, so"
        " that callers come to further gateway processes",
    )
    batch_requests: int = Field(
        4, ge=1, le=256, description="requests of batches that each gateway process answers side by side"
    )
    batch_bytes: int = Field(
        1024 * 1024 * 1024, ge=1024, description="files of batches that each tenant may keep, answers included"
    )
    answer_cache_bytes: int = Field(
        0,
        ge=0,
        description="memory of each gateway process for answers that are the same each time; none are kept at 0",
    )
    answer_cache_url: str | None = Field(
        None,
        description="valkey:// or redis:// URL (valkeys://, rediss:// over TLS) of a server that keeps such answers for"
        " all gateways, in place of the memory of each; it must have a `maxmemory` and an eviction policy",
    )
    answer_cache_ttl_s: float = Field(3600.0, gt=0, description="seconds after which a kept answer is forgotten")
    gateway_processes: int = Field(
        1,
        ge=1,
        le=MAX_PROCESSES,
        description="gateway processes that share the ports; a mesh of one machine runs as many as it has processors, "
        "4 at most, unless this is set",
    )
    gateway_process: int = Field(1, ge=1, description="which of them this one is; the mesh sets it")
    gateway_sockets: Path | None = Field(
        None, description="folder of the processes' own sockets, for probes and metrics; the mesh sets it"
    )
    max_streams_per_connection: int = Field(1000, ge=1, description="calls at once on one gRPC connection")
    messages_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1024,
        description="memory for gRPC messages that are being read, and as much for those of calls that are being "
        "answered, and for what streams of requests leave unfinished; beyond it RESOURCE_EXHAUSTED with RetryInfo",
    )
    message_timeout_s: float = Field(60.0, gt=0, description="time for the message of a gRPC call to arrive")
    max_request_streams: int = Field(
        256, ge=1, description="gRPC calls with a stream of requests at once, half of them of one key"
    )

    tls_cert: Path | None = Field(None, description="certificate chain (PEM) of both doors; plain text when unset")
    tls_key: Path | None = Field(None, description="private key (PEM) of the certificate")
    tls_client_ca: Path | None = Field(
        None, description="authorities (PEM) that sign clients' certificates, which callers must then show"
    )

    cors_origins: str = Field(
        "",
        description="origins of web pages that may call, comma-separated (https://app.example.com), or *",
    )

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for origin in value.split(","):
            if origin.strip() and origin.strip() != "*" and not _ORIGIN.fullmatch(origin.strip()):
                raise ValueError(f"has {origin.strip()!r}, which is not an origin such as https://app.example.com")
        return value

    @property
    def origins(self) -> tuple[str, ...]:
        """Origins of web pages that may call."""
        return tuple(origin for part in self.cors_origins.split(",") if (origin := part.strip()))

    @model_validator(mode="after")
    def _sharable(self) -> Self:
        if self.gateway_process > self.gateway_processes:
            raise ValueError("TIDEMILL_GATEWAY_PROCESS must not be larger than TIDEMILL_GATEWAY_PROCESSES")
        if self.gateway_processes > 1 and (self.bind.startswith(UNIX) or self.bind.endswith(":0")):
            raise ValueError("TIDEMILL_BIND must be host:port with a fixed port where several processes share it")
        if self.gateway_processes > 1 and self.http_bind.endswith(":0"):
            raise ValueError("TIDEMILL_HTTP_BIND must have a fixed port where several processes share it")
        return self

    @field_validator("answer_cache_url")
    @classmethod
    def _is_cache(cls, value: str | None) -> str | None:
        if value is not None and not _CACHE.match(value):
            # The URL may hold a password, so it is not repeated.
            raise ValueError("must begin with valkey://, valkeys://, redis:// or rediss://, and a host")
        return value

    @model_validator(mode="after")
    def _one_cache(self) -> Self:
        if self.answer_cache_url is not None and self.answer_cache_bytes:
            raise ValueError("set one of TIDEMILL_ANSWER_CACHE_URL and TIDEMILL_ANSWER_CACHE_BYTES")
        return self

    @model_validator(mode="after")
    def _whole_tls(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("set TIDEMILL_TLS_CERT and TIDEMILL_TLS_KEY together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("TIDEMILL_TLS_CLIENT_CA needs TIDEMILL_TLS_CERT and TIDEMILL_TLS_KEY")
        return self

    @property
    def tls_files(self) -> TlsFiles | None:
        """The server certificate; None for plain text."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca)

    @property
    def message_limits(self) -> MessageLimits:
        """Limits of the messages of gRPC clients."""
        return MessageLimits(
            bytes_read=self.messages_bytes,
            largest=MAX_MESSAGE_BYTES,
            arrival_s=self.message_timeout_s,
            streams=self.max_request_streams,
            unfinished=self.messages_bytes,
        )

    @property
    def stranger_limits(self) -> MessageLimits:
        """Limits of the messages of gRPC clients that need no key, such as health checks."""
        return MessageLimits(bytes_read=2 * MAX_MESSAGE_BYTES, largest=MAX_MESSAGE_BYTES, arrival_s=2.0, streams=2)

    @property
    def http_limits(self) -> HttpLimits:
        """Limits for HTTP clients."""
        return HttpLimits(
            header_timeout_s=self.header_timeout_s,
            body_timeout_s=self.body_timeout_s,
            connections=self.max_connections,
            connections_per_client=self.max_connections_per_client,
            connection_age_s=self.connection_age_s,
            body_bytes=self.max_body_bytes,
            bodies_bytes=self.bodies_bytes,
        )
