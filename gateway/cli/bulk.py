"""`--in FILE --out FILE` of `tidemill predict` and `generate`: thousands of texts, one answer a line, resumable.

Input is JSON lines: objects with `text` and, if wanted, an `id`; other fields are ignored. Output has a line for each
input line, in order, with the same `line` (from 1) and `id`, and either the answer or an `error`. If the output
exists, the command continues it: what was written stays, and a line that a crash cut off is written again.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import grpc
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.cli.output import stderr
from services.kit.errors import FieldViolation, InvalidArgumentError, TidemillError, is_retryable
from services.kit.grpc.errors import from_rpc_error
from services.kit.json_lines import continued
from services.kit.retrying import Backoff

_PATIENCE_S = 600.0
"""Seconds that the mesh may be unavailable before the command ends; what was written stays."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the input."""

    line: int
    text: str
    id: str | None = None

    def answered(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The line of the output with its answer."""
        return {"line": self.line, **({} if self.id is None else {"id": self.id}), **answer}


Ask = Callable[[Sequence[Row]], Sequence[dict[str, Any]]]
"""Sends some rows in one request; returns an answer for each row, or raises `grpc.RpcError`."""


def run_bulk(source: Path, target: Path, ask: Ask, *, batch: int, at_once: int) -> None:
    """Writes an answer for every row of a file.

    Args:
        source: the input.
        target: the output; continued if it exists.
        ask: calls the model.
        batch: rows per request.
        at_once: number of concurrent requests.

    Raises:
        InvalidArgumentError: a file cannot be read or written, a line of the input is not valid, or the output was
            written for another input.
        TidemillError: the mesh refused the key or the model, or was unavailable for too long.
    """
    rows = read_rows(source)
    try:
        with _continued(target) as (out, done):
            _check_same(rows, done, target)
            left = rows[len(done) :]
            with _progress() as progress:
                task = progress.add_task(target.name, total=len(rows), completed=len(done))
                for answers in _answers(left, ask, batch, at_once):
                    for answer in answers:
                        out.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
                    out.flush()
                    progress.advance(task, len(answers))
            os.fsync(out.fileno())
    except OSError as error:
        raise InvalidArgumentError(f"{target} cannot be written: {error.strerror}.") from error


def read_rows(source: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        InvalidArgumentError: it cannot be read, or a line is not an object with a text; names the line.
    """
    try:
        lines = source.read_bytes().split(b"\n")
    except OSError as error:
        raise InvalidArgumentError(f"{source} cannot be read: {error.strerror}.") from error
    if lines[-1] == b"":
        lines.pop()
    return [_row(source, number, line) for number, line in enumerate(lines, 1)]


def _row(source: Path, number: int, line: bytes) -> Row:
    where = f"{source}, line {number}"
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InvalidArgumentError(f"{where} is not JSON: {error}.") from error
    if not isinstance(value, dict) or not isinstance(value.get("text"), str) or not value["text"].strip():
        wrong = FieldViolation("text", "must be a text that is not empty")
        raise InvalidArgumentError(f"{where}: `text` must be a text that is not empty.", violations=[wrong])
    name = value.get("id")
    if name is not None and not isinstance(name, str | int):
        wrong = FieldViolation("id", "must be a text or a number")
        raise InvalidArgumentError(f"{where}: `id` must be a text or a number.", violations=[wrong])
    return Row(number, value["text"], None if name is None else str(name))


class _continued:  # noqa: N801 - a context manager
    """Opens the output after its last complete line; gives the file and the answers that it already has."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __enter__(self) -> tuple[BinaryIO, list[Any]]:
        self._file, lines = continued(self._target)
        try:
            return self._file, [json.loads(line) for line in lines]
        except ValueError as error:
            raise InvalidArgumentError(f"{self._target} exists and is not output of this command: {error}.") from error

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _check_same(rows: Sequence[Row], done: Sequence[Any], target: Path) -> None:
    same = len(done) <= len(rows) and all(
        isinstance(answer, dict) and (answer.get("line"), answer.get("id")) == (row.line, row.id)
        for row, answer in zip(rows, done, strict=False)
    )
    if not same:
        raise InvalidArgumentError(
            f"{target} holds answers to another input; name another file, or delete it to begin again."
        )


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=stderr(), transient=True)


def _answers(rows: Sequence[Row], ask: Ask, batch: int, at_once: int) -> Iterator[list[dict[str, Any]]]:
    """Answers in the order of the rows, from `at_once` concurrent requests."""
    groups = (rows[at : at + batch] for at in range(0, len(rows), batch))
    stop = threading.Event()
    pending: deque[Future[list[dict[str, Any]]]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for group in groups:
                pending.append(pool.submit(_ask, group, ask, stop))
                if len(pending) >= 2 * at_once:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            stop.set()
            for future in pending:
                future.cancel()


def _ask(rows: Sequence[Row], ask: Ask, stop: threading.Event) -> list[dict[str, Any]]:
    backoff, end = Backoff(), time.monotonic() + _PATIENCE_S
    while True:
        try:
            return [row.answered(answer) for row, answer in zip(rows, ask(rows), strict=True)]
        except grpc.RpcError as error:
            found = from_rpc_error(error)
            if found.code == "INVALID_ARGUMENT":
                return _refused(rows, found, ask, stop)
            pause = found.retry_after_s or backoff.next_s()
            if not (is_retryable(found) or found.code == "RESOURCE_EXHAUSTED") or time.monotonic() + pause > end:
                raise
            if stop.wait(pause):
                raise


def _refused(rows: Sequence[Row], error: TidemillError, ask: Ask, stop: threading.Event) -> list[dict[str, Any]]:
    """Sends each row of a refused request alone, so that only the invalid text gets the error."""
    if len(rows) == 1:
        return [rows[0].answered({"error": {"code": error.code, "reason": error.reason, "message": error.message}})]
    return [answer for row in rows for answer in _ask([row], ask, stop)]
