"""Answers the requests of batches in the background, a few at a time; one runner in each gateway process.

A line is written when its answer is there. After a kill the next process continues behind the lines that are written,
so a request that was being answered is asked once more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO

import orjson

from gateway.access import BACKGROUND, CALLER, Caller
from gateway.batches.objects import BatchError, BatchErrors, RequestCounts, Status, StoredBatch
from gateway.batches.store import BatchStore, Claim
from gateway.keys.key import ApiKey
from services.kit.errors import UnauthenticatedError, UnavailableError
from services.kit.ids import new_id
from services.kit.json_lines import continued
from services.kit.retrying import Backoff

logger = logging.getLogger(__name__)

MAX_LINES = 50_000
_LOOK_S, _SAVE_S, _SWEEP_S = 1.0, 1.0, 600.0
_MAX_ERRORS = 100
# Statuses that pass: the queue is full or the key at a limit; a part is unavailable.
_PASSING = frozenset({429, 503})
_LONGEST_PAUSE_S = 30.0
_MAX_ID = 512


@dataclass(frozen=True, slots=True)
class Reply:
    """What a route answered: JSON of one line; `retry_after_s` if it said when to come again."""

    status: int
    body: bytes
    request_id: str = ""
    retry_after_s: float | None = None


Ask = Callable[[str, bytes], Awaitable[Reply]]
"""Sends a body to a path, in the name of the present caller."""
KeyOf = Callable[[str], Awaitable[ApiKey]]
"""The valid key of this id. Raises UnauthenticatedError if there is none."""


@dataclass(frozen=True, slots=True)
class Line:
    """A request of a batch."""

    custom_id: str
    body: bytes


class _EndedError(Exception):
    """A batch ends before all of its lines are answered."""

    def __init__(self, status: Status, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def read_lines(content: bytes, endpoint: str) -> tuple[list[Line], list[BatchError]]:
    """The requests of a file, and what is wrong with it."""
    lines: list[Line] = []
    errors: list[BatchError] = []
    seen: set[str] = set()
    for number, text in enumerate(content.split(b"\n"), 1):
        if not text.strip():
            continue
        try:
            line = _line(text, endpoint, seen)
        except ValueError as error:
            param, message = error.args if len(error.args) == 2 else ("", str(error))
            errors.append(BatchError(code="invalid_line", line=number, message=message, param=param or None))
            if len(errors) == _MAX_ERRORS:
                break
            continue
        seen.add(line.custom_id)
        lines.append(line)
    if not errors and not 0 < len(lines) <= MAX_LINES:
        message = f"A file must have 1 to {MAX_LINES:,} requests; this one has {len(lines):,}."
        errors.append(BatchError(code="invalid_file", message=message))
    return lines, errors


def _line(text: bytes, endpoint: str, seen: set[str]) -> Line:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError("", f"The line is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("", "The line must be a JSON object.")
    if unknown := sorted(value.keys() - {"custom_id", "method", "url", "body"}):
        raise ValueError(
            unknown[0], f"`{unknown[0]}` is not a field of a request; it has custom_id, method, url, body."
        )
    name, body = value.get("custom_id"), value.get("body")
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_ID:
        raise ValueError("custom_id", f"`custom_id` must be a text of 1 to {_MAX_ID} characters.")
    if name in seen:
        raise ValueError("custom_id", f"`custom_id` {name[:64]!r} is already used by an earlier line.")
    if value.get("method", "POST") != "POST":
        raise ValueError("method", "`method` must be POST.")
    if value.get("url") != endpoint:
        raise ValueError("url", f"`url` must be the batch's endpoint, {endpoint}.")
    if not isinstance(body, dict):
        raise ValueError("body", "`body` must be an object.")
    if body.get("stream"):
        raise ValueError("body.stream", "`body.stream` cannot be true: a batch answers whole.")
    return Line(name, orjson.dumps(body))


@dataclass(slots=True)
class _Output:
    """What is written for a batch: answers, and requests that failed."""

    out: BinaryIO
    err: BinaryIO
    counts: RequestCounts
    done: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, claim: Claim, total: int) -> _Output:
        """Opens it behind what an earlier process wrote."""
        (out, answered), (err, failed) = continued(claim.path("out")), continued(claim.path("err"))
        done = {orjson.loads(line)["custom_id"] for line in (*answered, *failed)}
        return cls(out, err, RequestCounts(total=total, completed=len(answered), failed=len(failed)), done)

    def add(self, line: Line, reply: Reply | None, error: tuple[str, str] | None = None) -> None:
        """Writes what came of a line."""
        ok = reply is not None and reply.status == 200
        head = {"id": f"batch_req_{new_id()}", "custom_id": line.custom_id}
        failure = None if error is None else {"code": error[0], "message": error[1]}
        response = b"null"
        if reply is not None:
            known = orjson.dumps({"status_code": reply.status, "request_id": reply.request_id})
            # The body is JSON of one line already: reading a large one again would hold up callers online.
            response = known[:-1] + b',"body":' + reply.body + b"}"
        file = self.out if ok else self.err
        tail = b',"response":' + response + b',"error":' + orjson.dumps(failure) + b"}\n"
        file.write(orjson.dumps(head)[:-1] + tail)
        file.flush()
        if ok:
            self.counts.completed += 1
        else:
            self.counts.failed += 1

    def close(self) -> None:
        """Forces it to the disk."""
        for file in (self.out, self.err):
            os.fsync(file.fileno())
            file.close()


class BatchRunner:
    """Works on batches until it is cancelled; one of each tenant at a time, oldest first."""

    def __init__(
        self,
        store: BatchStore,
        ask: Ask,
        key_of: KeyOf,
        at_once: int,
        made: asyncio.Event,
        count: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        store: files and batches.
        ask: answers one request.
        key_of: the keys.
        at_once: requests that are answered side by side.
        made: is set when a batch was made or cancelled here; those of other processes are found within a second.
        count: called with `completed` or `failed` for each request.
        clock: seconds since 1970.
        """
        self._count = count
        self._store, self._ask, self._key_of, self._clock = store, ask, key_of, clock
        # First come, first served: batches of several tenants take turns.
        self._turns = asyncio.Semaphore(at_once)
        self._at_once = at_once
        self._running: dict[str, asyncio.Task[None]] = {}
        self._made = made

    async def run(self) -> None:
        """Looks for batches, and works on them."""
        swept = float("-inf")
        try:
            while True:
                try:
                    await self._start()
                    if time.monotonic() - swept > _SWEEP_S:
                        swept = time.monotonic()
                        await asyncio.to_thread(self._store.sweep)
                except OSError:
                    logger.exception("batches cannot be read; they wait")
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._made.wait()
                self._made.clear()
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _start(self) -> None:
        for tenant, batch_id in await asyncio.to_thread(self._store.unfinished):
            if tenant in self._running:
                continue
            claim = await asyncio.to_thread(self._store.claim, tenant, batch_id)
            if claim is not None:
                task = self._running[tenant] = asyncio.create_task(self._work(claim))
                task.add_done_callback(lambda _, tenant=tenant: self._ended(tenant))  # type: ignore[misc]

    def _ended(self, tenant: str) -> None:
        del self._running[tenant]
        self._made.set()

    async def _work(self, claim: Claim) -> None:
        try:
            stored = await asyncio.to_thread(claim.load)
            if stored.end is None:
                await self._answer(claim, stored)
            await asyncio.to_thread(self._finish, claim, stored)
            logger.info("batch %s ended: %s", stored.batch.id, stored.batch.status)
        except Exception:
            logger.exception("batch %s stopped; it is tried again", claim.batch_id)
            await asyncio.sleep(_LONGEST_PAUSE_S)
        finally:
            claim.close()

    async def _answer(self, claim: Claim, stored: StoredBatch) -> None:
        """Validates a batch and answers its lines; leaves `stored` with its end and the files that it will have."""
        batch = stored.batch
        content = await asyncio.to_thread(claim.path("in").read_bytes)
        lines, errors = await asyncio.to_thread(read_lines, content, batch.endpoint)
        del content
        if errors:
            stored.end, batch.errors = "failed", BatchErrors(data=errors)
            return
        if batch.status == "validating":
            batch.status, batch.in_progress_at = "in_progress", int(self._clock())
        output = await asyncio.to_thread(_Output.open, claim, len(lines))
        batch.request_counts = output.counts
        await asyncio.to_thread(claim.save, stored)
        left = deque(line for line in lines if line.custom_id not in output.done)
        try:
            await self._answer_lines(claim, stored, left, output)
            stored.end = "completed"
        except _EndedError as ended:
            stored.end = ended.status
            if ended.status == "failed":
                batch.errors = BatchErrors(data=[BatchError(code=ended.code, message=ended.message)])
            if ended.status == "expired":
                for line in left:
                    output.add(line, None, (ended.code, ended.message))
        finally:
            await asyncio.to_thread(output.close)
        batch.output_file_id = f"file-{new_id()}" if output.counts.completed else None
        batch.error_file_id = f"file-{new_id()}" if output.counts.failed else None

    async def _answer_lines(self, claim: Claim, stored: StoredBatch, left: deque[Line], output: _Output) -> None:
        """Takes the lines that are answered out of `left`."""

        async def work() -> None:
            while left:
                line = left.popleft()
                try:
                    reply = await self._reply(stored, line)
                    output.add(line, reply)
                    self._count("completed" if reply.status == 200 else "failed")
                except BaseException:
                    left.appendleft(line)
                    raise

        async def watch(workers: Sequence[asyncio.Task[None]]) -> None:
            while not all(worker.done() for worker in workers):
                await asyncio.wait(workers, timeout=_SAVE_S)
                await asyncio.to_thread(claim.save, stored)
                if any(worker.done() and worker.exception() is not None for worker in workers):
                    return
                if await asyncio.to_thread(lambda: claim.cancelled):
                    raise _EndedError("cancelled", "cancelled", "It was cancelled.")
                if self._clock() >= stored.batch.expires_at:
                    message = "This request could not be answered before the batch expired."
                    raise _EndedError("expired", "batch_expired", message)
                if await asyncio.to_thread(self._store.used, claim.tenant) > self._store.limit:
                    message = f"The files of batches exceed the limit of {self._store.limit:,} bytes; delete some."
                    raise _EndedError("failed", "files_full", message)

        workers = [asyncio.create_task(work()) for _ in range(self._at_once)]
        try:
            await watch(workers)
        finally:
            for worker in workers:
                worker.cancel()
            found = await asyncio.gather(*workers, return_exceptions=True)
        for error in found:
            if isinstance(error, Exception):
                raise error

    async def _reply(self, stored: StoredBatch, line: Line) -> Reply:
        backoff = Backoff()
        BACKGROUND.set(True)  # each worker has a context of its own
        while True:
            if stored.key_id:
                try:
                    CALLER.set(Caller(await self._key_of(stored.key_id)))
                except UnauthenticatedError as error:
                    message = f"The API key {stored.key_id}, which created the batch, is not valid any more."
                    raise _EndedError("failed", "api_key_invalid", message) from error
                except UnavailableError:
                    await asyncio.sleep(backoff.next_s())
                    continue
            async with self._turns:
                reply = await self._ask(stored.batch.endpoint, line.body)
            if reply.status not in _PASSING:
                return reply
            await asyncio.sleep(min(_LONGEST_PAUSE_S, reply.retry_after_s or backoff.next_s()))

    def _finish(self, claim: Claim, stored: StoredBatch) -> None:
        """Puts the files of a batch in place; may be repeated after a kill."""
        batch, end = stored.batch, stored.end
        assert end is not None
        if batch.status != "finalizing":
            batch.status, batch.finalizing_at = "finalizing", int(self._clock())
            claim.save(stored)
        self._store.place_outputs(claim, stored)
        batch.status, now = end, int(self._clock())
        if end == "cancelled":
            batch.cancelling_at = batch.finalizing_at
        setattr(batch, f"{end}_at", now)
        claim.save(stored)
        claim.forget()
