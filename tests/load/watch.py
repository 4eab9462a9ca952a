"""What a mesh's processes are, how much memory they take, and what they wrote into their logs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.stack import client
from infra.stack.state import StackState

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


def processes(stack: StackState) -> Mapping[str, Process]:
    """The supervisor and its children now, by name."""
    now = client.status(stack.state, stack.home)
    pids = {"supervisor": now.pid} | {name: child.pid for name, child in now.children.items()}
    return {name: Process(pid, psutil.Process(pid).create_time()) for name, pid in pids.items() if pid is not None}


def memory(stack: StackState) -> Mapping[str, int]:
    """MiB that each process and its descendants hold."""
    held: dict[str, int] = {}
    for name, process in processes(stack).items():
        if name != "supervisor":
            root = psutil.Process(process.pid)
            held[name] = sum(_resident(each) for each in (root, *root.children(recursive=True))) // _MEBIBYTE
    return held


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
