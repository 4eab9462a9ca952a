"""The gateway's settings; read from `TIDEMILL_*` by `gateway.__main__` only."""

from __future__ import annotations

from pydantic import Field

from services.kit.config import ServiceSettings


class GatewaySettings(ServiceSettings):
    """Where the gateway listens and whom it lets in."""

    http_bind: str = Field("127.0.0.1:8080", description="host:port of the HTTP server")
    auth: bool = Field(True, description="whether requests need an API key; switch it off behind another guard only")
    max_body_bytes: int = Field(64 * 1024 * 1024, ge=1024, description="largest body of an HTTP request")
