"""Follows an import to its end, for the commands that begin one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from tidemill.ingest.v1.ingest_service_pb2 import WatchImportRequest
from tidemill.ingest.v1.source_import_pb2 import Import

from gateway.cli.connection import Connection
from gateway.cli.patience import watched
from services.kit.errors import FailedPreconditionError


def imported(connection: Connection, begun: Import, console: Console) -> Import:
    """The import once it has ended.

    Raises:
        FailedPreconditionError: it failed, or was cancelled.
    """
    ended = begun
    with console.status(f"collecting {begun.spec.source}") as shown:
        call, request = connection.ingest.WatchImport, WatchImportRequest(name=begun.name)
        for answer in states(connection, call, request, lambda answer: answer.source_import.state):
            ended = answer.source_import
            shown.update(f"collecting {begun.spec.source}: {records(ended.record_count)}")
    if ended.state != Import.STATE_SUCCEEDED:
        raise FailedPreconditionError(
            ended.failure.message or f"{ended.name} was cancelled by someone else; build again.",
            reason=ended.failure.reason or "WORK_CANCELLED",
        )
    known = "unchanged, " if begun.reused else ""
    refused = (
        f", {ended.rejected_count:,} refused (`tidemill dlq list --import {ended.name}`)"
        if ended.rejected_count
        else ""
    )
    gone = f", {ended.withdrawn_count:,} gone" if ended.withdrawn_count else ""
    console.print(f"{ended.spec.source}: {known}{records(ended.record_count)}{gone}{refused}", soft_wrap=True)
    return ended


def records(count: int) -> str:
    """A number of records in words, such as `1 record`."""
    return f"{count:,} record{'' if count == 1 else 's'}"


def states(connection: Connection, call: Any, request: Any, state: Any) -> Iterator[Any]:
    """Every state of an import or a version, the last one final."""
    # The first state after "not set" of imports and of versions is the one of work that has not ended.
    return watched(
        lambda: call(request, metadata=connection.metadata),
        lambda answer: state(answer) > Import.STATE_RUNNING,
        "the same command",
    )
