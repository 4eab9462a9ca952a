"""The scheduler on the real engine: long prompts are read in parts, and callers may leave at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.inference.triton_models.scheduler import QueueFullError, Scheduler
from services.inference.triton_models.turns import CallerPriority
from services.kit.engine import import_openvino, open_language_model
from services.training.adapters.language_builds import LanguageBuilds
from tests.models import make_language_model

pytestmark = pytest.mark.real

_WORDS = ("the room is good and lovely",)
_LONG = 2000


class _Work:
    """An answer without a caller; `on_take` is called with the number of tokens so far."""

    def __init__(
        self,
        prompt: Sequence[int],
        limit: int,
        on_take: Callable[[int], None] = lambda _: None,
        turn: CallerPriority = CallerPriority(),  # noqa: B008 - it cannot be changed
    ) -> None:
        self.prompt, self.limit, self.on_take, self.turn = prompt, limit, on_take, turn
        self.cost = len(prompt) + limit
        self.tokens: list[int] = []
        self.begun, self.over = threading.Event(), threading.Event()
        self.gone = self.cancelled = False
        self.failure: Exception | None = None

    def start(self, pipeline: Any, number: int) -> Any:
        import openvino_genai

        config = openvino_genai.GenerationConfig(max_new_tokens=self.limit, do_sample=False, ignore_eos=True)
        self.begun.set()
        return pipeline.add_request(number, import_openvino().Tensor(np.asarray([self.prompt], dtype=np.int64)), config)

    def take(self, tokens: Sequence[int], logprobs: Sequence[float], ended: bool) -> bool:
        self.tokens += tokens
        self.on_take(len(self.tokens))
        if ended:
            self.over.set()
        return ended

    def is_cancelled(self) -> bool:
        return self.gone

    def cancel(self) -> None:
        self.cancelled = True
        self.over.set()

    def fail(self, error: Exception) -> None:
        self.failure = error
        self.over.set()


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    LanguageBuilds(make_language_model(folder / "merged", _WORDS)).build(folder / "build", "int8")
    return folder / "build"


@pytest.fixture
def scheduler(build: Path) -> Iterator[Scheduler]:
    pipeline, capacity = open_language_model(build, cache_bytes=2**24, max_active=8, prefix_caching=True)
    failures: list[str] = []
    scheduler = Scheduler(
        pipeline, capacity=capacity, max_active=8, max_waiting=8, on_error=failures.append, on_broken=lambda: None
    )
    yield scheduler
    scheduler.close()
    assert not failures


def test_a_running_answer_continues_while_a_long_prompt_is_read(scheduler: Scheduler) -> None:
    long = _Work([5 + at % 200 for at in range(_LONG)], 2)
    meanwhile: list[int] = []

    def on_take(count: int) -> None:
        if count == 5:
            scheduler.submit(long)
        if long.begun.is_set() and not long.tokens:
            meanwhile.append(count)

    running = _Work([5, 6, 7], 200, on_take)
    scheduler.submit(running)
    assert running.over.wait(120)
    assert long.over.wait(120)
    assert running.failure is long.failure is None
    # A token with each part of the prompt.
    assert len(meanwhile) > _LONG // 64 // 2


def test_a_caller_who_leaves_while_the_prompt_is_read_frees_the_engine(scheduler: Scheduler) -> None:
    gone = _Work([5 + at % 200 for at in range(_LONG)], 1000)
    scheduler.submit(gone)
    assert gone.begun.wait(60)
    gone.gone = True
    assert gone.over.wait(60)
    assert gone.cancelled
    after = _Work([5, 6, 7], 4)
    scheduler.submit(after)
    assert after.over.wait(60)
    assert len(after.tokens) == 4


def test_the_background_leaves_room_and_makes_room_and_callers_take_turns(build: Path) -> None:
    pipeline, capacity = open_language_model(build, cache_bytes=2**24, max_active=4, prefix_caching=True)
    scheduler = Scheduler(
        pipeline, capacity=capacity, max_active=4, max_waiting=8, on_error=lambda _: None, on_broken=lambda: None
    )
    background = [_Work([5, 6, 7], 400, turn=CallerPriority("b", background=True)) for _ in range(8)]
    for work in background:
        scheduler.submit(work)
    assert background[1].begun.wait(60)
    online = [_Work([7, 6, at], 5, turn=CallerPriority(name)) for at, name in enumerate("aaaacdef", start=5)]
    for work in online:
        # The queue holds eight: each of these displaces one that no one waits for.
        scheduler.submit(work)
    for work in online:
        assert work.over.wait(60)
    assert not any(work.begun.is_set() for work in background[2:])
    assert not any(work.failure for work in online)
    scheduler.close()
    refused = [work for work in background if work.failure is not None]
    assert all(isinstance(work.failure, QueueFullError) for work in refused)
    assert len(refused) + sum(len(work.tokens) == 400 for work in background) == 8


def test_more_than_the_cache_holds_is_answered_one_after_the_other(build: Path) -> None:
    """With a cache that ran full the engine would not come back."""
    pipeline, capacity = open_language_model(build, cache_bytes=721_000, max_active=8, prefix_caching=True)
    assert capacity == 4096
    scheduler = Scheduler(
        pipeline, capacity=capacity, max_active=8, max_waiting=8, on_error=lambda _: None, on_broken=lambda: None
    )
    works = [_Work([5 + number] * 1500, 600) for number in range(3)]
    for work in works:
        scheduler.submit(work)
    scheduler.close()
    assert [len(work.tokens) for work in works] == [600] * 3
