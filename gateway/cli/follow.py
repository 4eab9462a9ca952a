"""Follows a cycle to its end, through lost connections and restarts of what it watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import grpc
from rich.console import Console
from tidemill.pipeline.v1.cycle_pb2 import Cycle
from tidemill.pipeline.v1.pipeline_service_pb2 import WatchCycleRequest

from gateway.cli.connection import Connection
from gateway.cli.patience import Patience
from gateway.cli.views.cycle import reporter

_PAUSE_S = 1.0


class Detached(Exception):  # noqa: N818 - not an error
    """The user stopped watching; the cycle continues."""


def follow(connection: Connection, name: str, console: Console) -> Cycle:
    """Shows a cycle until it ends.

    Args:
        connection: to the mesh.
        name: `pipelines/{pipeline}/cycles/{cycle}`.
        console: for the progress.

    Raises:
        Detached: ctrl-C.
        UnavailableError: the mesh did not come back within two minutes.
    """
    cycle = Cycle(name=name)
    try:
        with reporter(console) as report:
            for state in _states(connection, name, report.note):
                cycle = state
                report.update(cycle)
    except KeyboardInterrupt:
        raise Detached from None
    return cycle


def _states(connection: Connection, name: str, note: Callable[[str], None]) -> Iterator[Cycle]:
    """Every state of the cycle, the last one final."""
    patience = Patience(f"tidemill follow {name}")
    while True:
        try:
            call = connection.pipeline.WatchCycle(WatchCycleRequest(name=name), metadata=connection.metadata)
            for response in call:
                patience.restored()
                note("")
                yield response.cycle
                if response.cycle.state not in (Cycle.STATE_RUNNING, Cycle.STATE_UNSPECIFIED):
                    return
        except grpc.RpcError as error:
            patience.failed(error)
            note("The mesh does not answer; retrying …")
        time.sleep(_PAUSE_S)
