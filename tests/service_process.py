"""A service as a process of its own, which a test starts, kills and starts again, as a supervisor would."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from infra.stack.layout import python_path
from tests.processes import serves, wait_started


def free_port() -> int:
    """A port that no one uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class ServiceProcess:
    """`python -m services.<name>` with a state that outlives a kill.

    `environment` are its settings beside TIDEMILL_BIND. It sends no telemetry unless they say so.
    """

    name: str
    folder: Path
    environment: Mapping[str, str]
    patience_s: float = 180
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    _open: grpc.Channel | None = None

    @property
    def log(self) -> Path:
        """Its log, over all restarts."""
        return self.folder / f"{self.name}-{self.port}.log"

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Starts it and waits until it serves."""
        environment = {
            **os.environ,
            "PYTHONPATH": python_path(),
            "TIDEMILL_BIND": f"127.0.0.1:{self.port}",
            # Not the folder of this user's own mesh.
            "TIDEMILL_STATE": str(self.folder),
        }
        environment.pop("TIDEMILL_OTLP_ENDPOINT", None)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"services.{self.name}"],
                env={**environment, **self.environment},
                stdout=log,
                stderr=log,
            )
        wait_started(self.process, self.log, lambda: serves(self.channel()), self.patience_s)

    def kill(self) -> None:
        """kill -9, where it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.close()

    def stop(self) -> int:
        """Asks it to end.

        Returns:
            Its exit status.
        """
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        self.close()
        return status

    def channel(self) -> grpc.Channel:
        """The channel to it, until it is killed or stopped."""
        if self._open is None:
            self._open = self.connect()
        return self._open

    def connect(self) -> grpc.Channel:
        """A channel of the caller's own, which finds the process again after a restart."""
        options = [("grpc.max_reconnect_backoff_ms", 500), ("grpc.max_receive_message_length", 64 << 20)]
        return grpc.insecure_channel(f"127.0.0.1:{self.port}", options=options)

    def close(self) -> None:
        """Closes the channel."""
        if self._open is not None:
            self._open.close()
            self._open = None
