"""What the supervisor needs to know about a child before starting it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.stack.addresses import Addresses


@dataclass(frozen=True, slots=True)
class User:
    """A user of the machine."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class PrivateNetwork:
    """A network in which a program can only be reached through its guard, and cannot reach anything."""

    port: int
    """The guard listens on this port of the machine's loopback, the program on the same port of its own network."""
    guard: tuple[str, ...]
    """The guard's command; the descriptor of the listening socket and the port are appended."""
    environment: Mapping[str, str]
    """The guard's environment, in addition to the program's."""


@dataclass(frozen=True, slots=True)
class Program:
    """How to run one child; created by its `prepare`, once its addresses are known and its folders exist."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    before: tuple[str, ...] | None = None
    """A command to run before the program, with the same environment and log; it must succeed."""
    network: PrivateNetwork | None = None
    leftovers: tuple[Path, str] | None = None
    """Folder and glob of files that the program leaves behind when it is killed."""
    read_once: tuple[Path, ...] = ()
    """Files that the program reads when it starts: if they change while it is ready, it is started again."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """The declaration of a child: its dependencies, its ports, how to run it and how to probe it."""

    name: str
    ports: Mapping[str, int]
    """Usual port by use; the supervisor picks free ones when these are taken. Uses are unique over all children."""
    prepare: Callable[[Addresses], Program]
    """Given all children's addresses, writes configuration and says how to run it. May block."""
    probe: Callable[[Addresses], None]
    """Returns when the child is ready to work, raises ProbeError when it is not. May block a few seconds."""
    sockets: Mapping[str, str] = field(default_factory=dict)
    """Name of its Unix socket by use; unlike a port, no other user can reach it."""
    needs: frozenset[str] = frozenset()
    """Children that must be ready before it starts."""
    uses: frozenset[str] = frozenset()
    """Children that it calls and can wait for itself; they are stopped after it, like those it needs."""
    stop_grace_s: float = 20.0
    alive: Callable[[Addresses], None] | None = None
    """Like `probe`, for a child that was ready: whether a restart would help. None means `probe`."""
    standby: bool = False
    """Whether it is started only when the load asks for it; the stack is ready, and continues, without it."""
    liveness_s: float = 30.0
    """A child that was ready and fails every probe for this long is killed and started again."""
