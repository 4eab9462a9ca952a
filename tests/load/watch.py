"""What a mesh's processes are, how much memory they take, and what they wrote into their logs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from infra.stack import client
from infra.stack.state import StackState
from services.kit.telemetry import schema

SUPERVISOR = "supervisor"
_MEBIBYTE = 1 << 20
# Of parts that do not write JSON: Kafka and Elasticsearch name the level in brackets or behind the time, Triton by a
# letter.
_ERROR_LINE = re.compile(r"^\[[^]]+\](?:\[ERROR\]| ERROR )|^\S+Z E \d+ ")
# Triton looks for a GPU at its start.
_HARMLESS = ("CudaDriverHelper",)
_NEVER = ("Task was destroyed but it is pending", "was never awaited", "exception was never retrieved")


@dataclass(frozen=True, slots=True)
class Process:
    """One process: a later one with its id has another start."""

    pid: int
    start: float
    name: str = field(compare=False)
    """The supervisor's child that it is or descends from, and its command."""


def processes(stack: StackState) -> frozenset[Process]:
    """The supervisor, its children and all that descends from these, such as the process of each model in Triton."""
    return frozenset(
        process
        for name, root in _roots(stack).items()
        for each in (root, *(_descendants(root) if name != SUPERVISOR else ()))
        if (process := _process(name, each)) is not None
    )


def ended(stack: StackState, before: frozenset[Process]) -> list[Process]:
    """Those that have ended since, whether or not others were started in their place."""
    return sorted(before - processes(stack), key=lambda process: process.name)


def memory(stack: StackState) -> Mapping[str, int]:
    """MiB that each process and its descendants hold."""
    return {
        name: sum(_resident(each) for each in (root, *_descendants(root))) // _MEBIBYTE
        for name, root in _roots(stack).items()
        if name != SUPERVISOR
    }


def answered_endpoints(stack: StackState) -> set[str]:
    """Routes and RPCs to which the gateway has given an answer, as its metrics name them."""
    text = httpx.get(f"http://{stack.address('gateway_http')}/metrics", timeout=60, headers=_token(stack)).text
    return {
        sample.labels["endpoint"]
        for family in text_string_to_metric_families(text)
        if family.name == schema.REQUESTS
        for sample in family.samples
        if sample.labels.get("code") == "OK" and sample.value
    }


def _token(stack: StackState) -> Mapping[str, str]:
    return {"authorization": f"Bearer {stack.layout.state.metrics_token.read_text().strip()}"}


def _roots(stack: StackState) -> Mapping[str, psutil.Process]:
    """The supervisor and its children, by name."""
    now = client.status(stack.state, stack.home)
    pids = {SUPERVISOR: now.pid} | {name: child.pid for name, child in now.children.items()}
    found = {}
    for name, pid in pids.items():
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if pid is not None:
                found[name] = psutil.Process(pid)
    return found


def _descendants(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _process(name: str, process: psutil.Process) -> Process | None:
    """None if it has ended; a zombie has."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return Process(process.pid, process.create_time(), f"{name}: {' '.join(process.cmdline())}")
    except psutil.NoSuchProcess:
        return None


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


class Logs:
    """What is written from now on."""

    def __init__(self, stack: StackState) -> None:
        self._folder = stack.layout.state.logs
        self._from = {path: path.stat().st_size for path in self._folder.glob("*.log")}

    def errors(self) -> list[str]:
        """Lines of level ERROR, and whatever a program says when it has forgotten some of its work."""
        return [
            f"{path.name}: {line[:1000]}"
            for path in sorted(self._folder.glob("*.log"))
            for line in self._lines(path)
            if _is_error(line)
        ]

    def _lines(self, path: Path) -> list[str]:
        with path.open("rb") as file:
            file.seek(self._from.get(path, 0))
            return file.read().decode(errors="replace").splitlines()


def _is_error(line: str) -> bool:
    if any(words in line for words in _NEVER):
        return True
    if line.startswith("{"):
        try:
            level = json.loads(line).get("log.level", "")
        except ValueError:
            return False
        return level in ("error", "critical")
    return bool(_ERROR_LINE.match(line)) and not any(words in line for words in _HARMLESS)
