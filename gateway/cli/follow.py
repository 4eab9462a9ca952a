"""Follows a cycle to its end, through lost connections and restarts of what it watches."""

from __future__ import annotations

from rich.console import Console
from tidemill.pipeline.v1.cycle_pb2 import Cycle
from tidemill.pipeline.v1.pipeline_service_pb2 import WatchCycleRequest

from gateway.cli.connection import Connection
from gateway.cli.patience import watched
from gateway.cli.views.cycle import reporter


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
            request = WatchCycleRequest(name=name)
            for response in watched(
                lambda: connection.pipeline.WatchCycle(request, metadata=connection.metadata),
                lambda response: response.cycle.state not in (Cycle.STATE_RUNNING, Cycle.STATE_UNSPECIFIED),
                f"tidemill follow {name}",
                report.note,
            ):
                cycle = response.cycle
                report.update(cycle)
    except KeyboardInterrupt:
        raise Detached from None
    return cycle
