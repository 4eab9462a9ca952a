"""What each key with limits uses now, in memory that all processes of a gateway share.

One file, mapped into each process. Each change holds a kernel lock for a few microseconds; the lock of a process that
dies is released, and what it wrote stays. After a crash of the machine, what was used in the half minute before may be
missing. Requests under way are counted for each process apart, so that those of a process that died are forgotten when
the next one starts in its place.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_PROCESSES = 64
_SLOTS = 4096
# The layout is part of the file's name: another release may have another one.
FILE_NAME = "key-usage-2"
# Id of the key, requests left, when they were counted, mean seconds of a request, when the place was used last, the day
# whose tokens are counted, and the tokens; then the requests of each process.
_HEAD = struct.Struct("<16sdddddd")
_COUNT = struct.Struct("<I")
_SIZE = _HEAD.size + MAX_PROCESSES * _COUNT.size


class KeyUsage:
    """A view of one key's usage, valid inside of the block that it was given to."""

    __slots__ = ("_at", "_process", "_processes", "_table")

    def __init__(self, table: mmap.mmap, at: int, process: int, processes: int) -> None:
        self._table, self._at, self._process, self._processes = table, at, process, processes

    def _number(self, index: int) -> float:
        found: float = struct.unpack_from("<d", self._table, self._at + 16 + 8 * index)[0]
        return found

    def _set(self, index: int, value: float) -> None:
        struct.pack_into("<d", self._table, self._at + 16 + 8 * index, value)

    @property
    def tokens(self) -> float:
        """Requests that its rate allows at once, at `filled_at`."""
        return self._number(0)

    @tokens.setter
    def tokens(self, value: float) -> None:
        self._set(0, value)

    @property
    def filled_at(self) -> float:
        """When the tokens were counted, in seconds of the clock; -inf at first."""
        return self._number(1)

    @filled_at.setter
    def filled_at(self, value: float) -> None:
        self._set(1, value)

    @property
    def mean_s(self) -> float:
        """Mean seconds of its requests, the last ones weighing most."""
        return self._number(2)

    @mean_s.setter
    def mean_s(self, value: float) -> None:
        self._set(2, value)

    @property
    def used_at(self) -> float:
        """When it was asked for last, in seconds of the machine's clock."""
        return self._number(3)

    @used_at.setter
    def used_at(self, value: float) -> None:
        self._set(3, value)

    def spent(self, day: int) -> int:
        """Tokens of prompts and answers that were used in a day; days are counted."""
        # A clock that was set back does not give a day twice.
        return int(self._number(5)) if self._number(4) >= day else 0

    def spend(self, day: int, tokens: int) -> None:
        """Counts tokens."""
        self._set(5, self.spent(day) + tokens)
        self._set(4, max(day, self._number(4)))

    @property
    def concurrent(self) -> int:
        """Requests under way in all processes."""
        return sum(struct.unpack_from(f"<{self._processes}I", self._table, self._at + _HEAD.size))

    def add_concurrent(self, count: int) -> None:
        """Changes the number of this process's requests under way."""
        at = self._at + _HEAD.size + _COUNT.size * self._process
        _COUNT.pack_into(self._table, at, max(0, _COUNT.unpack_from(self._table, at)[0] + count))


class UsageTable:
    """The usage of at most 4,096 keys; beyond that, the key that was used longest ago is forgotten."""

    def __init__(self, file: Path | None = None, process: int = 1, processes: int = 1) -> None:
        """Opens it, and forgets the requests of the process before in this one's place.

        Args:
            file: shared by the processes; None where there is one only.
            process: the number of this one, from 1.
            processes: how many there are.

        Raises:
            OSError: the file cannot be opened.
        """
        self._process, self._processes = process - 1, processes
        self._offsets: dict[bytes, int] = {}
        self._file: int | None = None
        if file is None:
            self._table = mmap.mmap(-1, _SLOTS * _SIZE)
            return
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with self._locked():
            # Only ever made longer: the other processes have all of it mapped.
            if os.fstat(self._file).st_size < _SLOTS * _SIZE:
                os.ftruncate(self._file, _SLOTS * _SIZE)
            self._table = mmap.mmap(self._file, _SLOTS * _SIZE)
            for at in range(0, _SLOTS * _SIZE, _SIZE):
                _COUNT.pack_into(self._table, at + _HEAD.size + _COUNT.size * self._process, 0)

    @contextmanager
    def of(self, key_id: str) -> Iterator[KeyUsage]:
        """The usage of a key, which no other process changes meanwhile."""
        name = key_id.encode()[:16].ljust(16, b"\0")
        with self._locked():
            at = self._offsets.get(name)
            if (
                at is None or self._table[at : at + 16] != name
            ):  # another process may have given its place to another key
                at = self._offsets[name] = self._place(name)
            use = KeyUsage(self._table, at, self._process, self._processes)
            use.used_at = time.monotonic()
            yield use

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._file is None:
            yield
            return
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1)

    def _place(self, name: bytes) -> int:
        oldest, since = 0, float("inf")
        for at in range(0, _SLOTS * _SIZE, _SIZE):
            known, _, _, _, used_at, _, _ = _HEAD.unpack_from(self._table, at)
            if known == name:
                return at
            if known == bytes(16):
                oldest = at
                break
            if used_at < since and not KeyUsage(self._table, at, self._process, self._processes).concurrent:
                oldest, since = at, used_at
        self._table[oldest : oldest + _SIZE] = bytes(_SIZE)
        _HEAD.pack_into(self._table, oldest, name, float("inf"), float("-inf"), 0.0, 0.0, 0.0, 0.0)
        return oldest


def tokens_spent(file: Path, day: int) -> dict[str, int]:
    """Tokens that keys used in a day, by id of the key; empty where no gateway counts in this file.

    Raises:
        OSError: the file cannot be read.
    """
    if not file.is_file():
        return {}
    content, found = file.read_bytes(), {}
    for at in range(0, len(content) - _SIZE + 1, _SIZE):
        name, *_, counted, spent = _HEAD.unpack_from(content, at)
        if name != bytes(16) and counted >= day:
            found[name.rstrip(b"\0").decode()] = int(spent)
    return found
