"""Shows a running cycle, one line per stage: live on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from tidemill.pipeline.v1.cycle_pb2 import Cycle, Stage

from gateway.formats import duration, elapsed, figures

_WIDE = 96
_PLAIN_EVERY_S = 10.0


class CycleReporter(Protocol):
    """Shows the states of one cycle."""

    def __enter__(self) -> CycleReporter:
        """Begins."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends; the last state stays visible."""
        ...

    def update(self, cycle: Cycle) -> None:
        """Shows a newer state."""
        ...

    def note(self, text: str) -> None:
        """Shows a line under the stages, such as a lost connection; an empty text removes it."""
        ...


def reporter(console: Console) -> CycleReporter:
    """The reporter for a terminal or for a pipe."""
    return LiveReporter(console) if console.is_terminal else PlainReporter(console)


def bar(done: int, total: int, width: int) -> Text:
    """A bar of `width` characters."""
    filled = round(width * min(1.0, done / total)) if total else 0
    return Text.assemble(("━" * filled, "cyan"), ("━" * (width - filled), "bright_black"))


def _detail(stage: Stage, width: int) -> Text:
    if stage.state == Stage.STATE_RUNNING:
        progress = stage.progress
        words = Text()
        if progress.phase and progress.phase != stage.name:
            words.append(f"{progress.phase} ", "bold")
        if progress.waiting.message:
            words.append(f"waits: {progress.waiting.message} ", "yellow")
        if progress.total:
            words.append_text(bar(progress.done, progress.total, 24 if width >= _WIDE else 8))
            words.append(" ")
        words.append(" · ".join(figures(progress, brief=width < _WIDE)))
        return words
    if stage.state == Stage.STATE_FAILED:
        return Text(stage.summary or "failed", "red")
    detail = Text(stage.summary)
    if stage.reused:
        detail = Text.assemble(("reused ", "bold green"), detail)
    return detail


_ICONS = {
    Stage.STATE_SUCCEEDED: Text("✓", "green"),
    Stage.STATE_FAILED: Text("✗", "bold red"),
    Stage.STATE_SKIPPED: Text("–", "bright_black"),
    Stage.STATE_PENDING: Text("·", "bright_black"),
    Stage.STATE_UNSPECIFIED: Text("·", "bright_black"),
}


class LiveReporter:
    """Redraws the stages in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._cycle = Cycle()
        self._note = ""
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(self, console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> LiveReporter:
        """Begins."""
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends; the last state stays visible."""
        self._live.__exit__(kind, error, trace)

    def update(self, cycle: Cycle) -> None:
        """Shows a newer state."""
        self._cycle = cycle

    def note(self, text: str) -> None:
        """Shows a line below the stages."""
        self._note = text

    def __rich__(self) -> RenderableType:
        """The picture of this moment."""
        table = stages_table(self._cycle, self._console.width, self._spinner, time.time())
        return Group(table, Text(self._note, "yellow")) if self._note else table


def stages_table(cycle: Cycle, width: int, spinner: RenderableType, now: float) -> Table:
    """A table with one line per stage.

    Args:
        cycle: the state to show.
        width: width of the terminal, in columns.
        spinner: shown before a running stage.
        now: seconds since the epoch.
    """
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=1)
    table.add_column(width=8, style="bold")
    table.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
    table.add_column(width=7, justify="right", style="bright_black")
    for stage in cycle.stages:
        seconds = elapsed(stage, now)
        table.add_row(
            spinner if stage.state == Stage.STATE_RUNNING else _ICONS[stage.state],
            stage.name,
            _detail(stage, width),
            "" if seconds is None else duration(seconds),
        )
    return table


class PlainReporter:
    """Prints a line when a stage begins or ends, and every ten seconds in between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed: dict[str, tuple[int, object]] = {}
        self._printed_at: dict[str, float] = {}
        self._note = ""

    def __enter__(self) -> PlainReporter:
        """Begins."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends."""

    def update(self, cycle: Cycle) -> None:
        """Prints what is new."""
        now = time.time()
        for stage in cycle.stages:
            if stage.state in (Stage.STATE_UNSPECIFIED, Stage.STATE_PENDING):
                continue
            progress = stage.progress
            key = (stage.state, (progress.phase, progress.waiting.reason) if stage.state == Stage.STATE_RUNNING else "")
            due = stage.state == Stage.STATE_RUNNING and now - self._printed_at.get(stage.name, now) >= _PLAIN_EVERY_S
            if self._printed.get(stage.name) != key or due:
                self._printed[stage.name] = key
                self._printed_at[stage.name] = now
                self._console.print(self._line(stage, now), soft_wrap=True, markup=False)

    def note(self, text: str) -> None:
        """Prints a line."""
        if text and text != self._note:
            self._console.print(text, soft_wrap=True, markup=False)
        self._note = text

    @staticmethod
    def _line(stage: Stage, now: float) -> str:
        seconds = elapsed(stage, now)
        took = "" if seconds is None else f" ({duration(seconds)})"
        if stage.state == Stage.STATE_RUNNING:
            phase = stage.progress.phase if stage.progress.phase != stage.name else ""
            why = stage.progress.waiting.message
            waiting = f"waits: {why}" if why else ""
            words = " · ".join(part for part in (phase, *figures(stage.progress), waiting) if part)
            return f"[{stage.name}] {words or 'started'}{took}"
        word = Stage.State.Name(stage.state).removeprefix("STATE_").lower()
        reused = ", reused" if stage.reused else ""
        return f"[{stage.name}] {word}{reused}{took}{': ' if stage.summary else ''}{stage.summary}"
