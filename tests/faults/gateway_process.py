"""The gateway as a process of its own without services behind it, for tests of what callers can send it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.stack.layout import python_path
from tests.processes import wait_started

_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class GatewayProcess:
    """A running gateway."""

    process: subprocess.Popen[bytes]
    state: Path
    log: Path
    http: int
    grpc: int

    @property
    def key(self) -> str:
        """The API key that it wrote."""
        return (self.state / "api-key").read_text().strip()

    def connect(self) -> socket.socket:
        """A plain connection to the HTTP door."""
        return socket.create_connection(("127.0.0.1", self.http), timeout=30)

    def resident(self) -> int:
        """Its resident memory, in bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


@contextmanager
def running_gateway(state: Path, settings: Mapping[str, str] | None = None) -> Iterator[GatewayProcess]:
    """Starts it with further settings (`TIDEMILL_*`, named without that prefix); ends it after the block."""
    log = state / f"gateway{(settings or {}).get('GATEWAY_PROCESS', '')}.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
    environment |= {
        "PYTHONPATH": python_path(),
        "TIDEMILL_STATE": str(state),
        "TIDEMILL_DATABASE_URL": f"sqlite:///{state / 'gateway.sqlite'}",
        "TIDEMILL_BIND": "127.0.0.1:0",
        "TIDEMILL_HTTP_BIND": "127.0.0.1:0",
        **{f"TIDEMILL_{name}_ADDRESS": "127.0.0.1:1" for name in ("INGEST", "INFERENCE", "PIPELINE")},
        "TIDEMILL_KAFKA_BOOTSTRAP": "127.0.0.1:1",
        "TIDEMILL_TRITON_GRPC": "127.0.0.1:1",
        **{f"TIDEMILL_{name}": value for name, value in (settings or {}).items()},
    }
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "gateway"], env=environment, stdout=file, stderr=file)
    try:
        http, grpc = _ports(process, log)
        yield GatewayProcess(process, state, log, http, grpc)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ports(process: subprocess.Popen[bytes], log: Path) -> tuple[int, int]:
    def look() -> tuple[int, int] | None:
        text = log.read_text()
        http, grpc = (re.search(rf"gateway serves {what}on port (\d+)", text) for what in ("HTTPS? ", ""))
        return (int(http.group(1)), int(grpc.group(1))) if http and grpc else None

    return wait_started(process, log, look, _PATIENCE_S)
