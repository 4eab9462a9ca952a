"""What runs inside Triton but needs no Triton: text pieces, stop texts, batches, the scheduler."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.triton_models import tracing
from services.inference.triton_models.batches import by_length
from services.inference.triton_models.scheduler import QueueFullError, Scheduler
from services.inference.triton_models.text_stream import IncrementalDecoder, StopTexts
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
    finder, told, ended = StopTexts(stops), "", False
    for piece in pieces:
        text, ended = finder.push(piece)
        told += text
        if ended:
            break
    if not ended:
        told += finder.flush()
    whole = "".join(pieces)
    assert whole.startswith(told)
    assert not any(stop in told for stop in stops)
    if ended:
        assert any(whole[len(told) :].startswith(stop) for stop in stops)
    else:
        assert told == whole


def test_what_may_be_a_stop_text_is_held_back_until_it_is_none() -> None:
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


class _Work:
    def __init__(self, name: str, steps: int, log: list[str], *, breaks: bool = False) -> None:
        self.name, self.steps, self.log, self.breaks = name, steps, log, breaks
        self.failure: Exception | None = None

    def step(self) -> bool:
        if self.breaks:
            raise RuntimeError("broken")
        self.log.append(self.name)
        self.steps -= 1
        return self.steps == 0

    def fail(self, error: Exception) -> None:
        self.failure = error


class _Gate(_Work):
    """Holds the scheduler until all work is there, so that the order of turns is certain."""

    def __init__(self) -> None:
        super().__init__("gate", 1, [])
        self.begun, self.go = threading.Event(), threading.Event()

    def step(self) -> bool:
        self.begun.set()
        return self.go.wait(10)


def test_answers_take_turns_and_one_failure_ends_no_other() -> None:
    log: list[str] = []
    told: list[str] = []
    scheduler = Scheduler(max_active=2, max_waiting=10, on_error=told.append)
    gate, broken = _Gate(), _Work("x", 1, log, breaks=True)
    scheduler.submit(gate)
    assert gate.begun.wait(10)
    for work in (_Work("a", 3, log), broken, _Work("b", 2, log), _Work("c", 1, log)):
        scheduler.submit(work)
    gate.go.set()
    scheduler.close()
    assert log == ["a", "a", "b", "a", "b", "c"]
    assert str(broken.failure) == "broken"
    assert not told


def test_more_than_can_wait_are_refused() -> None:
    scheduler = Scheduler(max_active=1, max_waiting=1, on_error=lambda _: None)
    gate = _Gate()
    scheduler.submit(gate)
    assert gate.begun.wait(10)
    scheduler.submit(_Work("a", 1, []))
    with pytest.raises(QueueFullError):
        scheduler.submit(_Work("b", 1, []))
    gate.go.set()
    scheduler.close()


def test_span_attributes_have_the_meshs_names() -> None:
    """The models cannot import the kit, so the names stand twice."""
    assert schema.MODEL_VERSION == tracing.MODEL_VERSION
    assert schema.GEN_AI_INPUT_TOKENS == tracing.GEN_AI_INPUT_TOKENS
    assert schema.GEN_AI_OUTPUT_TOKENS == tracing.GEN_AI_OUTPUT_TOKENS


def test_without_an_endpoint_it_is_said_once_and_nothing_is_traced() -> None:
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
    monkeypatch.setenv(tracing.ENDPOINT_VARIABLE, "http://told:4317")
    assert tracing.otlp_endpoint(config) == "http://told:4317"
