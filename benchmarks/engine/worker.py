"""A runtime in a process of its own: its memory is its own, and so is its instruction set."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Worker:
    """Calls methods of an object that lives in another process."""

    def __init__(self, module: str, arguments: dict[str, Any], *, paths: tuple[Path, ...], environment: dict[str, str]):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        os.environ.update(environment)
        try:
            self._process = context.Process(
                target=serve, args=(module, arguments, [str(path) for path in paths], theirs), daemon=True
            )
            self._process.start()
        finally:
            for name in environment:
                del os.environ[name]
        theirs.close()
        self._answer()

    def call(self, method: str, *arguments: Any) -> Any:
        self._pipe.send((method, arguments))
        return self._answer()

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()

    def _answer(self) -> Any:
        ok, value = self._pipe.recv()
        if not ok:
            raise RuntimeError(value)
        return value


def serve(module: str, arguments: dict[str, Any], paths: list[str], pipe: Connection) -> None:
    """Makes `module.Subject(**arguments)` and answers calls until there is None."""
    import sys

    # Last: what Tidemill's own environment has is taken from there.
    sys.path += paths
    try:
        subject = importlib.import_module(module).Subject(**arguments)
        pipe.send((True, None))
        while (asked := pipe.recv()) is not None:
            pipe.send((True, getattr(subject, asked[0])(*asked[1])))
    except Exception:
        pipe.send((False, traceback.format_exc()))


def resident_mb() -> float:
    """Resident memory of this process, MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6
