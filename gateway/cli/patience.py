"""How long a command that follows something waits for a mesh that does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import grpc

from services.kit.errors import UnavailableError

PATIENCE_S = 120.0
_PAUSE_S = 1.0

T = TypeVar("T")

# What a caller sees of a restart of a service or the gateway, or of an overloaded machine.
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)


class Patience:
    """Decides after each failed call whether to retry: after a transient error, for a limited time."""

    def __init__(self, command: str) -> None:
        """`command` is what the error message suggests for continuing, such as `tidemill follow NAME`."""
        self._command = command
        self._lost_at: float | None = None

    @property
    def lost(self) -> bool:
        """Whether the last call failed."""
        return self._lost_at is not None

    def restored(self) -> None:
        """Call this when the mesh answered."""
        self._lost_at = None

    def failed(self, error: grpc.RpcError) -> None:
        """Call this when a call failed; returns if a retry makes sense.

        Raises:
            UnavailableError: the mesh has not answered for two minutes.
            grpc.RpcError: the error itself, if a retry does not help.
        """
        if error.code() not in _PASSING:
            raise error
        now = time.monotonic()
        self._lost_at = now if self._lost_at is None else self._lost_at
        if now - self._lost_at > PATIENCE_S:
            raise UnavailableError(
                f"The mesh has not answered for {PATIENCE_S:.0f} s: {error.details()}. `tidemill status` shows its "
                f"parts; `{self._command}` continues.",
                reason="GATEWAY_UNAVAILABLE",
            ) from error


def watched(
    watch: Callable[[], Iterable[T]],
    is_final: Callable[[T], bool],
    command: str,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[T]:
    """Every state of what is watched, the last one final, through lost connections and restarts.

    Args:
        watch: begins to watch: a call that streams states.
        is_final: whether nothing follows a state.
        command: see `Patience`.
        note: shows that the connection is lost, and nothing once it is back.

    Raises:
        UnavailableError, grpc.RpcError: see `Patience.failed`.
    """
    patience = Patience(command)
    while True:
        try:
            for state in watch():
                patience.restored()
                note("")
                yield state
                if is_final(state):
                    return
        except grpc.RpcError as error:
            patience.failed(error)
            note("The mesh does not answer; retrying …")
        time.sleep(_PAUSE_S)
