"""Looks at processes: at those of a mesh, some of which live for a moment only, and at one that was just started."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.waiting import PATIENCE_S, wait_until

T = TypeVar("T")


@contextmanager
def unless_ended(pid: int) -> Iterator[None]:
    """For a look at one process: it may end meanwhile, and then there is nothing to find wrong."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
        if not has_ended(pid):
            raise


def has_ended(pid: int) -> bool:
    """Whether a process has ended, if its parent has not collected it yet; it may vanish between two looks."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_started(
    process: subprocess.Popen[bytes], log: Path, look: Callable[[], T | None], patience_s: float = PATIENCE_S
) -> T:
    """What `look` returns as soon as it is true; fails with the end of the log once the process has ended."""

    def tail() -> str:
        return log.read_text(encoding="utf-8", errors="replace")[-4000:]

    def runs() -> None:
        assert process.poll() is None, tail()

    def started() -> T:
        found = look()
        assert found, tail()
        return found

    return wait_until(started, "the start of a process", patience_s, runs)


def serves(channel: grpc.Channel, service: str = "") -> bool:
    """Whether the process behind a channel says that it serves."""
    health: Any = health_pb2_grpc.HealthStub(channel)
    try:
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=2)
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
