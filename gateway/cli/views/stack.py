"""The parts of the mesh on this machine: their start as it happens, and their state as a table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from gateway.cli.output import plain_table
from gateway.formats import duration
from services.kit.bus.losses import NotedLoss
from services.kit.storage.disk import DiskSpace

if TYPE_CHECKING:
    from infra.stack.state import ChildState, StackState

_COLORS = {
    "ready": "green",
    "starting": "cyan",
    "restarting": "yellow",
    "waiting": "bright_black",
    "stopped": "bright_black",
}


class PartsReporter:
    """Shows each change of a part: redraws a table on a terminal, prints a line elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._parts: dict[str, ChildState] = {}
        self._printed: dict[str, str] = {}
        self._since = time.time()
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(self, console=console, refresh_per_second=8) if console.is_terminal else None

    def __enter__(self) -> PartsReporter:
        """Begins."""
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, *reason: object) -> None:
        """Ends; the last state stays visible."""
        if self._live:
            self._live.stop()

    def __call__(self, name: str, child: ChildState) -> None:
        """Shows a part that changed."""
        self._parts[name] = child
        phase = child.phase.value
        if self._live is None and self._printed.get(name) != phase and phase != "waiting":
            took = f" after {duration(child.ready_at - self._since)}" if phase == "ready" and child.ready_at else ""
            why = f": {child.last_error}" if phase == "restarting" and child.last_error else ""
            self._console.print(f"[{name}] {phase}{took}{why}", soft_wrap=True, markup=False)
        self._printed[name] = phase

    def __rich__(self) -> RenderableType:
        """The picture of this moment."""
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(width=14, style="bold")
        table.add_column(no_wrap=True, overflow="ellipsis")
        for name, child in self._parts.items():
            phase = child.phase.value
            icons: dict[str, RenderableType] = {
                "ready": Text("✓", "green"),
                "starting": self._spinner,
                "restarting": Text("↻", "yellow"),
            }
            words = Text(phase, _COLORS.get(phase, ""))
            if phase == "ready" and child.started_at and child.ready_at:
                words = Text(f"ready in {duration(child.ready_at - child.started_at)}", "bright_black")
            elif phase == "restarting" and child.last_error:
                words.append(f" {child.last_error}", "yellow")
            table.add_row(icons.get(phase, Text("·", "bright_black")), name, words)
        return table


def status_table(stack: StackState, now: float, width: int) -> Table:
    """Every part with health, process, port, restarts and time since its start.

    Args:
        stack: with probed children.
        now: seconds since the epoch.
        width: width of the terminal, in columns.
    """
    table = plain_table()
    table.add_column("part", style="bold")
    table.add_column("health")
    table.add_column("pid", justify="right")
    table.add_column("port", justify="right")
    table.add_column("restarts", justify="right")
    table.add_column("up", justify="right")
    table.add_column("note", overflow="fold", max_width=max(12, width - 66))
    for name, child in stack.children.items():
        table.add_row(
            name,
            Text(_health_words(child), _health(child)),
            str(child.pid or ""),
            ports_of(name, stack.ports) or ("socket" if ports_of(name, dict.fromkeys(stack.sockets, 0)) else ""),
            str(child.restarts) if child.restarts else "",
            duration(now - child.started_at) if child.started_at and child.pid else "",
            Text(_note(child), "yellow"),
        )
    return table


def _health_words(child: ChildState) -> str:
    if child.phase != "ready":
        return f"○ {child.phase.value}"
    return "● healthy" if child.healthy else "✗ unhealthy"


def _note(child: ChildState) -> str:
    if not child.healthy:
        return child.health or child.last_error
    return f"restarted: {child.last_error}" if child.restarts else ""


def disk_words(disk: DiskSpace) -> Text | None:
    """A warning about the disk; None while there is enough space."""
    if disk.reason == "DISK_FULL":
        return Text(f"The disk is full, nothing can be written: {disk}. Free some space.", "red")
    if disk.low:
        return Text(f"The disk is nearly full, new records are refused: {disk}.", "red")
    return Text(f"The disk will be full soon: {disk}.", "yellow") if disk.scarce else None


def loss_words(loss: NotedLoss) -> Text:
    """A warning about lost messages."""
    return Text(f"{loss} {loss.remedy} Then `tidemill doctor --repair` clears this notice.", "yellow")


def letter_words(count: int | None) -> Text | None:
    """A line about refused messages; None if there are none, or their number is not known."""
    if not count:
        return None
    messages = "1 message was refused and is" if count == 1 else f"{count:,} messages were refused and are"
    return Text(f"{messages} open: `tidemill dlq list` shows why.", "yellow")


def _health(child: ChildState) -> str:
    return "green" if child.healthy else "red" if child.phase == "ready" else "yellow"


def ports_of(name: str, ports: Mapping[str, int]) -> str:
    """The ports that callers of a part use, without those of its metrics. Processes `NAME-2` share those of `NAME`."""
    name = name.partition("-")[0]
    found = [
        port
        for use, port in ports.items()
        if use == name or (use.startswith(f"{name}_") and not use.endswith("_metrics"))
    ]
    return " ".join(str(port) for port in found)


@contextmanager
def download_bars(console: Console) -> Iterator[DownloadBars]:
    """Progress bars for downloads, shown during the block."""
    bars = DownloadBars(console)
    with bars:
        yield bars


class DownloadBars:
    """Shows the progress of each download."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._done: set[str] = set()
        self._progress = Progress(
            TextColumn("  {task.description:<20}"),
            BarColumn(bar_width=28),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> DownloadBars:
        """Begins."""
        self._progress.start()
        return self

    def __exit__(self, *reason: object) -> None:
        """Ends."""
        self._progress.stop()

    def __call__(self, name: str, done: int, total: int) -> None:
        """Shows that `done` of `total` bytes have arrived."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)
        if done >= total and name not in self._done:
            self._done.add(name)
            if not self._console.is_terminal:
                self._console.print(f"[assets] {name} is there", markup=False)
