"""The connection of this process to a Ray cluster that is there; none is started.

Ray's own, started here, would listen on every address of the machine, whatever it is asked to bind to. Ray is an extra,
so nothing of it is imported before it is asked for.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from services.kit.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError

_ANSWER_S = 5.0


@contextmanager
def connected(address: str, option: str, *, install: str, without: str, log_to_driver: bool = False) -> Iterator[Any]:
    """Ray's module, connected to a cluster within the block.

    Args:
        address: host and port of the cluster's head; this machine must be one of its nodes.
        option: what the address was given by, for messages.
        install: the extras that Ray comes with, such as `tidemill[bulk]`.
        without: a clause that says what happens without the option.
        log_to_driver: whether what processes on the nodes print is printed here.

    Raises:
        InvalidArgumentError: the address has no port.
        FailedPreconditionError: Ray is not installed.
        UnavailableError: the cluster cannot be used.
    """
    # For `local` Ray would start one here; `auto` would take whichever it finds.
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise InvalidArgumentError(
            f"{option} {address!r} is not the address of a cluster; give host:port, such as head:6379.",
            reason="RAY_ADDRESS",
        )
    # Before the import, at which Ray reads them. What is printed here goes into files.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_COLOR_PREFIX="0", RAY_DEDUP_LOGS="0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            f"Ray is not installed ({error}). Install {install}, or leave out {option}: {without}.",
            reason="RAY_MISSING",
        ) from error
    asked_to_stop = signal.getsignal(signal.SIGTERM)
    try:
        # Ray itself tries for minutes.
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
        ray.init(address=address, log_to_driver=log_to_driver, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UnavailableError(
            f"Ray at {address} cannot be used: {last_line(error)}. Check the address (host:6379), that this machine is "
            "a node of the cluster, that all run the same releases of Ray and Python, and the token (RAY_AUTH_TOKEN).",
            reason="RAY_UNAVAILABLE",
        ) from error
    if callable(asked_to_stop) and threading.current_thread() is threading.main_thread():
        # Ray's own, which it has put in its place, ends the process.
        signal.signal(signal.SIGTERM, asked_to_stop)
    try:
        yield ray
    finally:
        ray.shutdown()


def last_line(error: BaseException) -> str:
    """What an error of Ray says at its end, behind the traces of other processes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].rstrip(".")
