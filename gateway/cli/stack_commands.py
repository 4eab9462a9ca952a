"""`tidemill up`, `down`, `status`: the mesh on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from gateway.cli.mesh_owner import as_owner
from gateway.cli.output import EXIT_FAILED, EXIT_INTERRUPTED, JsonOption, print_json, stderr, stdout
from gateway.cli.views.stack import (
    PartsReporter,
    disk_words,
    download_bars,
    letter_words,
    loss_words,
    ports_of,
    status_table,
)
from services.kit.bus.losses import noted_losses
from services.kit.config import disk_reserve, home_dir, state_dir
from services.kit.errors import TidemillError
from services.kit.storage.disk import disk_space

if TYPE_CHECKING:
    from infra.stack.state import StackState

# Assets that the mesh itself needs, independent of pipelines.
PROGRAMS = ("kafka", "elasticsearch")


def check_machine() -> None:
    """Refuses a machine that cannot run the mesh, before anything is fetched or started."""
    from infra.stack import preflight
    from infra.stack.layout import Layout

    preflight.check(Layout.of(home_dir(), state_dir()))


def fetch(console: Console, names: Iterable[str]) -> None:
    """Fetches missing assets, with a progress bar each."""
    from infra.stack.assets import prepare
    from infra.stack.layout import Layout
    from infra.stack.mesh_user import refuse_home_of_others

    layout = Layout.of(home_dir(), state_dir())
    if os.geteuid() == 0:
        refuse_home_of_others(layout)
        os.umask(0o022)  # the mesh runs as another user and reads what root fetches
    with download_bars(console) as bars:
        prepare(layout.home, tuple(names), bars)


def start(console: Console, only: Iterable[str] | None = None) -> StackState:
    """Starts the mesh and shows the start of each part; if root runs this, as the mesh's user."""
    from infra.stack import client
    from infra.stack.layout import Layout
    from infra.stack.mesh_user import become_mesh_user

    become_mesh_user(Layout.of(home_dir(), state_dir()))

    began = time.monotonic()
    with PartsReporter(console) as report:
        stack = client.up(state_dir(), home_dir(), only=only, on_progress=report)
    took = time.monotonic() - began
    started = (
        "The mesh is" if only is None else f"{', '.join(stack.children)} {'are' if len(stack.children) > 1 else 'is'}"
    )
    ready = f"{started} ready ({took:.1f} s)"
    doors = ""
    if "gateway" in stack.ports:
        doors = f": gRPC on {stack.address('gateway')}, HTTP on {stack.address('gateway_http')}"
    console.print(f"{ready}{doors}.", soft_wrap=True)
    return stack


@contextmanager
def resumable(console: Console, again: str) -> Iterator[None]:
    """On ctrl-C within the block, says that nothing is lost and how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"\nInterrupted. Fetched files are kept; {again} continues from here.", style="yellow")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def up(
    only: Annotated[
        str | None, typer.Option(help="Parts to start, comma-separated; all by default.", show_default=False)
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay until stopped, for a container or a service manager.")
    ] = False,
) -> None:
    """Starts the mesh on this machine and waits until every part is ready."""
    console = stderr()
    check_machine()
    with resumable(console, "`tidemill up`"):
        fetch(console, PROGRAMS)
        if foreground:
            # As root it becomes the mesh's user itself.
            from infra.stack.__main__ import main

            raise typer.Exit(main([] if only is None else ["--only", only]))
        start(console, None if only is None else [name.strip() for name in only.split(",")])


def down() -> None:
    """Stops every part of the mesh, in order."""
    from infra.stack import client

    console = stderr()
    as_owner()
    with PartsReporter(console) as report:
        client.down(state_dir(), home_dir(), on_progress=report)
    console.print("The mesh is stopped. Its data is kept; `tidemill up` continues from it.")


def status(as_json: JsonOption = False) -> None:
    """Shows every part: health, process, port, restarts. Exits with 1 unless all are healthy and the disk has room."""
    from infra.stack import client

    as_owner()
    stack = client.status(state_dir(), home_dir())
    disk = disk_space(state_dir(), disk_reserve())
    lost = noted_losses(state_dir())
    letters = _open_letters(stack)
    well = bool(stack.children) and all(child.healthy for child in stack.children.values()) and not disk.reason
    if as_json:
        print_json(
            {
                "phase": stack.phase.value,
                "error": stack.error,
                "state": str(stack.state),
                "ports": dict(stack.ports),
                "warnings": [message for message, _ in stack.warnings],
                "disk": {
                    "free_bytes": disk.free,
                    "total_bytes": disk.total,
                    "reserve_bytes": disk.reserve,
                    "state": {"DISK_FULL": "full", "DISK_LOW": "low"}.get(
                        disk.reason, "scarce" if disk.scarce else "ok"
                    ),
                },
                "lost_messages": [
                    {"topic": each.topic, "group": each.group, "messages": each.messages, "remedy": each.remedy}
                    for each in lost
                ],
                # None: the gateway, or ingest behind it, did not answer.
                "open_dead_letters": letters,
                "sockets": {use: str(path) for use, path in stack.sockets.items()},
                "parts": {
                    name: {
                        "phase": child.phase.value,
                        "healthy": bool(child.healthy),
                        "note": child.health,
                        "pid": child.pid,
                        "ports": ports_of(name, stack.ports),
                        "restarts": child.restarts,
                        "last_error": child.last_error,
                        "started_at": child.started_at,
                        "log": child.log,
                    }
                    for name, child in stack.children.items()
                },
            }
        )
    elif not stack.running:
        why = f": {stack.error}" if stack.error else "."
        stdout().print(f"The mesh is {stack.phase.value}{why} Start it with `tidemill up`.", markup=False)
    else:
        console = stdout()
        console.print(status_table(stack, time.time(), console.width))
        if words := disk_words(disk):
            console.print(words, soft_wrap=True)
        for each in lost:
            console.print(loss_words(each), soft_wrap=True)
        if words := letter_words(letters):
            console.print(words, soft_wrap=True)
        for message, remedy in stack.warnings:
            console.print(f"{message} {remedy}", style="yellow", soft_wrap=True, markup=False)
        if not well:
            console.print("`tidemill doctor` says what is wrong and what to do.", soft_wrap=True, markup=False)
    if not well:
        raise typer.Exit(EXIT_FAILED)


def _open_letters(stack: StackState) -> int | None:
    """How many refused messages no one has decided about; None if no part says."""
    gateway = stack.children.get("gateway")
    if gateway is None or not gateway.healthy:
        return None
    from tidemill.ingest.v1.dead_letter_service_pb2 import ListDeadLettersRequest

    from gateway.cli.connection import connect

    try:
        with connect(None) as connection:
            request = ListDeadLettersRequest(page_size=1)
            answer = connection.dead_letters.ListDeadLetters(request, metadata=connection.metadata, timeout=5)
            return int(answer.open_count)
    except TidemillError:
        # The state of the parts, which is shown beside it, says what does not answer.
        return None
