"""What runs, as the supervisor writes it to `stack.json` and all other processes read it."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from infra.stack.addresses import Addresses
from infra.stack.layout import Layout
from infra.stack.process import is_alive
from services.kit.whole_files import replace_text

logger = logging.getLogger(__name__)

FORMAT = 2
OPEN_ELASTICSEARCH = "elasticsearch_transport"
"""Port that a node has only where it shares the machine's network."""


class StackPhase(StrEnum):
    """State of the whole stack."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"
    """It could not start; `error` says why."""
    CRASHED = "crashed"
    """The supervisor was killed."""


class ChildPhase(StrEnum):
    """State of one child."""

    WAITING = "waiting"
    """It waits for the children it needs."""
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    """It ended unexpectedly; it restarts after a pause."""
    STOPPED = "stopped"
    STANDBY = "standby"
    """The load does not ask for it."""


@dataclass(frozen=True, slots=True)
class ChildState:
    """One child. Times are seconds since the epoch."""

    phase: ChildPhase = ChildPhase.WAITING
    pid: int | None = None
    restarts: int = 0
    last_error: str = ""
    started_at: float | None = None
    ready_at: float | None = None
    log: str = ""
    failing_since: float | None = None
    """Since when it has failed every probe after having been ready."""
    healthy: bool | None = None
    """Result of a probe; None if none was made. Not written to the file."""
    health: str = ""
    """The probe's error, if unhealthy."""


@dataclass(frozen=True, slots=True)
class StackState:
    """The whole stack."""

    phase: StackPhase
    home: Path
    state: Path
    pid: int | None = None
    pid_ticks: int | None = None
    error: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)
    sockets: Mapping[str, Path] = field(default_factory=dict)
    children: Mapping[str, ChildState] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """Its folder."""
        return Layout.of(self.home, self.state)

    def address(self, use: str) -> str:
        """`127.0.0.1:port` or `unix:/path` of a use, such as `kafka`, `triton_grpc`, `gateway_http`, `ingest`."""
        return self.addresses[use]

    @property
    def addresses(self) -> Addresses:
        """Addresses of its children."""
        return Addresses(self.ports, self.sockets)

    @property
    def kafka_bootstrap(self) -> str:
        """For any Kafka client."""
        return self.address("kafka")

    @property
    def elasticsearch_url(self) -> str:
        """For any Elasticsearch client; with the password, if a guard requires one."""
        file = self.layout.state.elasticsearch_password
        secret = f"tidemill:{file.read_text(encoding='utf-8').strip()}@" if file.is_file() else ""
        return f"http://{secret}{self.address('elasticsearch')}"

    @property
    def triton_grpc(self) -> str:
        """For `tritonclient.grpc` of this user: a Unix socket."""
        return self.address("triton_grpc")

    @property
    def triton_repository(self) -> Path:
        """The model repository that Triton reads."""
        return self.layout.state.triton_repository

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """What works, but is less protected than it could be, and what to do about it."""
        # The node's second port is one of the machine's only where the node has no network of its own.
        if not self.running or OPEN_ELASTICSEARCH not in self.ports:
            return []
        return [
            (
                "Elasticsearch answers every user of this machine without a password: the kernel does not let the "
                "mesh's user give it a network of its own.",
                "Allow user namespaces (docs/security.md says how), or let no other user onto this machine.",
            )
        ]

    @property
    def running(self) -> bool:
        """Whether a supervisor is running."""
        return self.phase in (StackPhase.STARTING, StackPhase.READY, StackPhase.STOPPING)


class StateFile:
    """The state file as written by the supervisor; what cannot be written now (full disk) is retried later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: StackState | None = None

    @property
    def pending(self) -> bool:
        """Whether the file is older than what was published."""
        return self._pending is not None

    def publish(self, stack: StackState) -> None:
        """Writes the state, or keeps it for `retry`; never raises."""
        before, self._pending = self._pending, stack
        try:
            write_state(self._path, stack)
        except OSError as error:
            if before is None:
                logger.error("cannot write %s, which is now out of date; retrying: %s", self._path, error)
            return
        self._pending = None
        if before is not None:
            logger.info("%s is written again", self._path)

    def retry(self) -> None:
        """Retries a failed write."""
        if self._pending is not None:
            self.publish(self._pending)


def write_state(path: Path, stack: StackState) -> None:
    """Writes the file atomically."""
    value = dataclasses.asdict(stack) | {
        "format": FORMAT,
        "home": str(stack.home),
        "state": str(stack.state),
        "sockets": {use: str(path) for use, path in stack.sockets.items()},
    }
    for child in value["children"].values():
        del child["healthy"], child["health"]
    replace_text(path, json.dumps(value, indent=2) + "\n")


def read_state(layout: Layout) -> StackState:
    """Reads the file; a missing or unreadable one means that nothing runs, a dead supervisor that it was killed."""
    stack = parse_state(layout)
    if stack is None:
        return StackState(StackPhase.STOPPED, layout.home.root, layout.state.root)
    if stack.running and not is_alive(stack.pid, stack.pid_ticks):
        stopped = {
            name: dataclasses.replace(child, phase=ChildPhase.STOPPED, pid=None)
            for name, child in stack.children.items()
        }
        return dataclasses.replace(stack, phase=StackPhase.CRASHED, pid=None, children=stopped)
    return stack


def parse_state(layout: Layout) -> StackState | None:
    """The file's content, whether or not its supervisor is running; None if it cannot be read."""
    try:
        value = json.loads(layout.state.file.read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            return None
        children = {
            name: ChildState(**child | {"phase": ChildPhase(child["phase"])})
            for name, child in value["children"].items()
        }
        return StackState(
            phase=StackPhase(value["phase"]),
            home=Path(value["home"]),
            state=layout.state.root,
            pid=value["pid"],
            pid_ticks=value["pid_ticks"],
            error=value["error"],
            ports=value["ports"],
            sockets={use: Path(path) for use, path in value["sockets"].items()},
            children=children,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
