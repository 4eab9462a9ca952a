"""Callers at every door of a mesh at once; each notes what it was promised, so that it can be looked for afterwards."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from infra.stack.state import StackState
from tests.load.caller import Caller, Door, Ledgers, RefusedError
from tests.load.grpc_doors import GRPC_DOORS
from tests.load.http_doors import HTTP_DOORS
from tests.load.kafka_doors import KAFKA_DOORS

BUSY = frozenset({"RESOURCE_EXHAUSTED", "UNAVAILABLE"})
"""What a door may answer under load: come again."""
AWAY = BUSY | {"DEADLINE_EXCEEDED", "CANCELLED"}
"""What it may answer while parts of the mesh are killed."""

_PAUSE_S = 0.1


DOORS: Mapping[str, Door] = {**HTTP_DOORS, **GRPC_DOORS, **KAFKA_DOORS}
"""Every way to ask a mesh for something, by name; `tests/unit/gateway/test_load_doors.py` finds those missing."""


@dataclass
class Tally:
    """What became of the calls at one door."""

    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)


class Load:
    """Callers at every door, each with one call after the other; a call that was refused is made again as it was.

    Each waits `pause_s` after an answer; without a pause they take all that the machine has.
    """

    def __init__(
        self,
        stack: StackState,
        key: str,
        folder: Path,
        excused: Collection[str] = BUSY,
        callers: int = 2,
        pause_s: float = 0,
    ) -> None:
        self._stack, self._key, self._excused, self._callers = stack, key, excused, callers
        self._pause_s = pause_s
        self._run_id = f"{time.time_ns():x}"
        self.ledgers = Ledgers(folder)
        self.tallies: dict[str, Tally] = {door: Tally() for door in DOORS}
        self._answers: deque[str] = deque(maxlen=100)
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Callers call as long as the block lasts."""
        threads: list[threading.Thread] = []
        with ExitStack() as open_:
            for number in range(self._callers):
                caller = Caller(self._stack, self._key, self.ledgers, self._answers, open_)
                for name, door in DOORS.items():
                    mark = f"{self._run_id}-{name.replace(' ', '-')}-{number}"
                    run = partial(self._run, caller, door, self.tallies[name], mark)
                    threads.append(threading.Thread(target=run, name=mark))
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self._stop.set()
                for thread in threads:
                    thread.join()

    def answered(self) -> dict[str, int]:
        """Answered calls by door."""
        return {door: tally.answered for door, tally in self.tallies.items()}

    @property
    def defects(self) -> dict[str, list[str]]:
        """By door, what no load and no fault of a part excuses; the first few of each."""
        return {door: tally.defects[:3] for door, tally in self.tallies.items() if tally.defects}

    def _run(self, caller: Caller, door: Door, tally: Tally, mark: str) -> None:
        number = 0
        while not self._stop.is_set():
            try:
                door.call(caller, f"{mark}-{number}")
            except RefusedError as error:
                tally.refused[error.code] += 1
                if error.code not in self._excused:
                    tally.defects.append(str(error))
                self._stop.wait(_PAUSE_S)
            except Exception as error:
                tally.defects.append(repr(error))
                self._stop.wait(_PAUSE_S)
                number += 1
            else:
                tally.answered += 1
                number += 1
                self._stop.wait(self._pause_s)
