"""What runs inside Triton but needs no Triton: text pieces, stop texts, batches, the scheduler."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.triton_models import tracing
from services.inference.triton_models.batches import by_length
from services.inference.triton_models.runtimes import manifest_of
from services.inference.triton_models.scheduler import QueueFullError, Scheduler
from services.inference.triton_models.text_stream import IncrementalDecoder, StopTexts
from services.inference.triton_models.turns import CallerPriority
from services.kit.engine import QUEUE_FULL
from services.kit.telemetry import schema


def _bytes_of(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode("utf-8", "replace")


@given(st.text().filter(lambda text: "\ufffd" not in text))
def test_pieces_add_up_and_hold_whole_characters(text: str) -> None:
    decoder = IncrementalDecoder(_bytes_of)
    pieces = [decoder.push(token) for token in text.encode()] + [decoder.flush()]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_that_the_limit_cuts_in_two_is_left_out(cut: int) -> None:
    decoder = IncrementalDecoder(_bytes_of)
    assert [decoder.push(token) for token in "a😀".encode()[: 1 + cut]] == ["a", *[""] * cut]
    assert decoder.flush() == ""
    # Bytes that are not text keep their place, once text follows them.
    decoder = IncrementalDecoder(_bytes_of)
    assert [decoder.push(token) for token in b"\xf0a"] == ["", "\ufffda"]


@given(st.lists(st.text(alphabet="ab", max_size=3), max_size=30), st.lists(st.text("ab", min_size=1), max_size=3))
def test_an_answer_ends_before_the_first_stop_text(pieces: list[str], stops: list[str]) -> None:
    """However the text is cut into pieces, what is sent is the text before the first completed stop text."""
    finder, sent, ended = StopTexts(stops), "", False
    for piece in pieces:
        text, ended = finder.push(piece)
        sent += text
        if ended:
            break
    if not ended:
        sent += finder.flush()
    whole = "".join(pieces)
    assert whole.startswith(sent)
    assert not any(stop in sent for stop in stops)
    if ended:
        assert any(whole[len(sent) :].startswith(stop) for stop in stops)
    else:
        assert sent == whole


def test_a_possible_stop_text_is_held_back_until_it_cannot_become_one() -> None:
    finder = StopTexts(["END"])
    assert finder.push("the E") == ("the ", False)
    assert finder.push("N") == ("", False)
    assert finder.push("T") == ("ENT", False)
    assert finder.push("EN") == ("", False)
    assert finder.push("D of it") == ("", True)


@given(st.lists(st.integers(1, 512), max_size=64))
def test_groups_hold_every_text_once_and_little_padding(lengths: list[int]) -> None:
    groups = list(by_length(lengths))
    assert sorted(at for group in groups for at in group) == list(range(len(lengths)))
    for group in groups:
        padded = len(group) * max(lengths[at] for at in group)
        assert padded <= 1.25 * sum(lengths[at] for at in group)


class _Handle:
    """A request in an engine that writes the tokens 1, 2, 3, … of each answer, one a step."""

    def __init__(self, limit: int) -> None:
        self.limit, self.written, self.unread = limit, 0, list[int]()
        self.cancelled = False

    def advance(self) -> None:
        if self.written < self.limit and not self.cancelled:
            self.written += 1
            self.unread.append(self.written)

    def can_read(self) -> bool:
        return bool(self.unread)

    def read(self) -> dict[int, Any]:
        reason = SimpleNamespace(name="LENGTH" if self.written == self.limit else "NONE")
        tokens, self.unread = self.unread, []
        return {0: SimpleNamespace(generated_ids=tokens, generated_log_probs=[0.0] * len(tokens), finish_reason=reason)}

    def get_status(self) -> Any:
        return SimpleNamespace(name="FINISHED" if self.written == self.limit else "RUNNING")

    def cancel(self) -> None:
        self.cancelled = True


class _Engine:
    """Stands where the pipeline does; `go` lets it step."""

    def __init__(self) -> None:
        self.handles: list[_Handle] = []
        self.most = 0
        self.go, self.begun = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.fails = False

    def add(self, limit: int) -> _Handle:
        self.handles.append(_Handle(limit))
        return self.handles[-1]

    def step(self) -> None:
        self.begun.set()
        assert self.go.wait(10)
        if self.fails:
            raise RuntimeError("it is broken")
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        running = [handle for handle in self.handles if handle.written < handle.limit and not handle.cancelled]
        self.most = max(self.most, len(running))
        for handle in running:
            handle.advance()


class _Work:
    turn = CallerPriority()

    def __init__(self, engine: _Engine, limit: int, *, cost: int = 1, stops_at: int = 0, breaks: bool = False) -> None:
        self.engine, self.limit, self.cost, self.stops_at, self.breaks = engine, limit, cost, stops_at, breaks
        self.tokens: list[int] = []
        self.handle: _Handle | None = None
        self.failure: Exception | None = None
        self.gone = self.cancelled = self.over = False

    def start(self, pipeline: Any, number: int) -> Any:
        assert pipeline is self.engine
        self.handle = self.engine.add(self.limit)
        return self.handle

    def take(self, tokens: Sequence[int], logprobs: Sequence[float], ended: bool) -> bool:
        if self.breaks:
            raise RuntimeError("broken")
        self.tokens += tokens
        self.over = ended or bool(self.stops_at and len(self.tokens) >= self.stops_at)
        return self.over

    def is_cancelled(self) -> bool:
        return self.gone

    def cancel(self) -> None:
        self.cancelled = True

    def fail(self, error: Exception) -> None:
        self.failure = error


@pytest.fixture
def engine() -> _Engine:
    return _Engine()


def _scheduler(
    engine: _Engine, errors: list[str], *, active: int = 2, waiting: int = 10, capacity: int = 100
) -> Scheduler:
    return Scheduler(
        engine,
        capacity=capacity,
        max_active=active,
        max_waiting=waiting,
        on_error=errors.append,
        on_broken=lambda: errors.append("broken"),
    )


def test_answers_grow_side_by_side_and_one_failure_ends_no_other(engine: _Engine) -> None:
    errors: list[str] = []
    scheduler = _scheduler(engine, errors)
    works = [_Work(engine, 3), _Work(engine, 1, breaks=True), _Work(engine, 2), _Work(engine, 5, stops_at=2)]
    for work in works:
        scheduler.submit(work)
    engine.go.set()
    scheduler.close()
    assert [work.tokens for work in works] == [[1, 2, 3], [], [1, 2], [1, 2]]
    assert str(works[1].failure) == "broken"
    assert engine.most == 2
    # The engine would write on after a stop text.
    assert works[3].handle is not None
    assert works[3].handle.cancelled
    assert not errors


def test_a_step_that_fails_ends_what_was_under_way_and_nothing_else(engine: _Engine) -> None:
    scheduler = _scheduler(engine, [], active=1)
    first, second = _Work(engine, 3), _Work(engine, 2)
    engine.error = RuntimeError("out of memory")
    for work in (first, second):
        scheduler.submit(work)
    engine.go.set()
    scheduler.close()
    assert str(first.failure) == "out of memory"
    assert second.tokens == [1, 2]


def test_an_engine_that_fails_step_after_step_is_given_up(engine: _Engine) -> None:
    """One that cannot read a grammar fails for good; nothing but another process helps."""
    errors: list[str] = []
    scheduler = _scheduler(engine, errors, active=1)
    engine.fails = True
    works = [_Work(engine, 3) for _ in range(3)]
    for work in works:
        scheduler.submit(work)
    engine.go.set()
    scheduler.close()
    assert all(str(work.failure) == "it is broken" for work in works)
    assert errors == ["broken"]


def test_an_answer_waits_until_the_cache_has_room_for_it(engine: _Engine) -> None:
    scheduler = _scheduler(engine, [], active=8, capacity=100)
    works = [_Work(engine, 2, cost=60), _Work(engine, 2, cost=60), _Work(engine, 2, cost=40)]
    for work in works:
        scheduler.submit(work)
    engine.go.set()
    scheduler.close()
    assert all(work.tokens == [1, 2] for work in works)
    assert engine.most == 2


def test_an_answer_without_a_caller_is_dropped_whether_it_waits_or_runs(engine: _Engine) -> None:
    scheduler = _scheduler(engine, [], active=1)
    runs, waits = _Work(engine, 10**9), _Work(engine, 10**9)
    scheduler.submit(runs)
    assert engine.begun.wait(10)
    scheduler.submit(waits)
    runs.gone = waits.gone = True
    engine.go.set()
    scheduler.close()
    assert runs.cancelled
    assert waits.cancelled
    assert waits.handle is None


def test_more_than_can_wait_are_refused_with_the_time_that_they_take(engine: _Engine) -> None:
    scheduler = _scheduler(engine, [], active=1, waiting=1)
    scheduler.submit(_Work(engine, 1))
    assert engine.begun.wait(10)
    scheduler.submit(_Work(engine, 1))
    with pytest.raises(QueueFullError, match=rf"^1 {QUEUE_FULL} \d+ s\.$"):
        scheduler.submit(_Work(engine, 1))
    engine.go.set()
    scheduler.close()


def test_a_build_of_another_runtime_says_what_to_do(tmp_path: Path) -> None:
    """One that was published before the runtime changed, and is loaded again."""
    (tmp_path / "tidemill.json").write_text(json.dumps({"runtime": "onnxruntime-genai"}))
    with pytest.raises(ValueError, match=r"made for onnxruntime-genai.*train the model again"):
        manifest_of(tmp_path)
    (tmp_path / "tidemill.json").write_text(json.dumps({"runtime": "openvino"}))
    assert manifest_of(tmp_path)["runtime"] == "openvino"


def test_span_attributes_have_the_meshs_names() -> None:
    """The models cannot import the kit, so the names stand twice."""
    assert schema.MODEL_VERSION == tracing.MODEL_VERSION
    assert schema.GEN_AI_INPUT_TOKENS == tracing.GEN_AI_INPUT_TOKENS
    assert schema.GEN_AI_OUTPUT_TOKENS == tracing.GEN_AI_OUTPUT_TOKENS


def test_without_an_endpoint_the_log_says_so_once_and_nothing_is_traced() -> None:
    lines: list[str] = []
    tracer = tracing.ModelTracing("m", "1", "", lines.append)
    assert tracer.start("execute", '{"traceparent": "00-' + "1" * 32 + "-" + "1" * 16 + '-01"}') is None
    tracer.shutdown()
    assert len(lines) == 1
    assert tracing.ENDPOINT_VARIABLE in lines[0]


def test_tritons_environment_wins_over_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"parameters": {"otlp_endpoint": {"string_value": "http://configured:4317"}}}
    monkeypatch.delenv(tracing.ENDPOINT_VARIABLE, raising=False)
    assert tracing.otlp_endpoint(config) == "http://configured:4317"
    assert tracing.otlp_endpoint({}) == ""
    monkeypatch.setenv(tracing.ENDPOINT_VARIABLE, "http://configured:4317")
    assert tracing.otlp_endpoint(config) == "http://configured:4317"
