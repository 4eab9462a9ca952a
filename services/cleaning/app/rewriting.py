"""Asks models for the variants of versions that are being built, beside the builder, which waits for no answer.

Each answer is stored before it counts. What is to be asked follows from a version's records and is worked out again
after a restart: an answer that was stored is not asked for again, so a kill costs at most the calls under way.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from services.cleaning.app.ports import AnswerStore, Models
from services.cleaning.engine.rewriter import Answer, Query
from services.kit.clock import Clock
from services.kit.errors import FailedPreconditionError, TidemillError, explained, is_retryable
from services.kit.failure import Failure
from services.kit.retrying import call_with_retries_async

logger = logging.getLogger(__name__)


class _EndedError(Exception):
    """The version is no longer being built."""


@dataclass(slots=True)
class Asking:
    """The questions of a version: those that are left, how many are answered, and what it waits for or failed by."""

    dataset: str
    left: deque[Query]
    total: int
    began: float
    done: int = 0
    waiting: Failure | None = None
    failure: Failure | None = None
    ended: bool = field(default=False)

    @property
    def answered(self) -> bool:
        """Whether every question has its answer."""
        return self.done == self.total


class Rewriting:
    """`step` belongs to one task, the rest to the builder's thread."""

    def __init__(
        self, store: AnswerStore, models: Models, clock: Clock, *, calls_at_once: int, patience_s: float
    ) -> None:
        """Says how it asks.

        Args:
            store: keeps the answers.
            models: answer.
            clock: for the rate.
            calls_at_once: calls under way at a time, of all versions.
            patience_s: seconds that a model may be unavailable before the build fails.
        """
        self._store, self._models, self._clock = store, models, clock
        self._calls_at_once, self._patience_s = calls_at_once, patience_s
        self._lock = threading.Lock()
        self._asking: dict[str, Asking] = {}
        self._turn = count()

    def known(self, dataset: str) -> Mapping[str, Answer]:
        """The answers of a data set."""
        return self._store.answers(dataset)

    def begin(self, version: str, dataset: str, questions: Iterable[Query]) -> Asking:
        """Has questions of a version asked."""
        left = deque(questions)
        asking = Asking(dataset, left, len(left), self._clock.monotonic())
        with self._lock:
            self._asking[version] = asking
        return asking

    def of(self, version: str) -> Asking | None:
        """What is being asked for a version."""
        with self._lock:
            return self._asking.get(version)

    def only(self, versions: Collection[str]) -> None:
        """Ends the questions of all other versions, which were built or cancelled."""
        with self._lock:
            for version in self._asking.keys() - set(versions):
                self._asking.pop(version).ended = True

    def forget(self, dataset: str, keys: Collection[str]) -> None:
        """Deletes answers."""
        self._store.forget(dataset, keys)

    async def step(self) -> bool:
        """Asks the next few questions of a version; False if there was none."""
        with self._lock:
            waiting = [(name, each) for name, each in self._asking.items() if each.left and each.failure is None]
            if not waiting:
                return False
            version, asking = waiting[next(self._turn) % len(waiting)]
            batch = [asking.left.popleft() for _ in range(min(self._calls_at_once, len(asking.left)))]
        await asyncio.gather(*(self._ask(version, asking, question) for question in batch))
        return True

    async def _ask(self, version: str, asking: Asking, question: Query) -> None:
        what = f"a variant of {version}"

        async def pause(seconds: float) -> None:
            await asyncio.sleep(seconds)
            if asking.ended or asking.failure is not None:
                raise _EndedError

        async def note(error: BaseException) -> None:
            asking.waiting = Failure.of(error, "The model") if isinstance(error, Exception) else None

        call = partial(call_with_retries_async, what=what, patience_s=self._patience_s, sleep=pause, on_wait=note)
        try:
            answer = await call(partial(self._models.ask, question))
            await call(partial(asyncio.to_thread, self._store.keep, asking.dataset, question, answer))
        except _EndedError:
            return
        except Exception as error:
            if explained(error) is None:
                logger.exception("%s: a model could not be asked", what)
            asking.failure = Failure.of(_given_up(error, self._patience_s), "Asking a model")
            return
        asking.waiting = None
        asking.done += 1


def _given_up(error: Exception, patience_s: float) -> Exception:
    """What a build fails by: without its variants it would be another data set than the one that was asked for."""
    if not (isinstance(error, TidemillError) and is_retryable(error)):
        return error
    return FailedPreconditionError(
        f"The model that writes variants was unavailable for {patience_s:.0f} s: {error.message} Build again when it "
        "answers; what it has written is kept.",
        reason="AUGMENTATION_MODEL_UNAVAILABLE",
        metadata={"reason": error.reason},
    )
