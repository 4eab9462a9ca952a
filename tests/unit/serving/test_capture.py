"""What is kept of answers: nothing without a rule or against the caller's will, and nothing unmasked anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tidemill.inference.v1.inference_events_pb2 import AnswerCaptured
from tidemill.pipeline.v1 import pipeline_service_pb2 as pb

from services.kit.bus.port import OutgoingEvent
from services.kit.bus.topics import ANSWERS_CAPTURED, PREDICTIONS, Topic
from services.kit.clock import SystemClock
from services.kit.errors import UnavailableError
from services.kit.pseudonyms import user_key, user_pseudonym
from services.masking.masks import mask_of
from services.serving.adapters.answer_journal import AnswerJournal
from services.serving.adapters.capture_feed import CaptureFeed
from services.serving.adapters.served_log import BackgroundServedLog
from services.serving.adapters.shadow_counts import PrometheusShadowCounts
from services.serving.app.capture import Capture, CaptureRules
from services.serving.app.ports import Served
from services.serving.app.routing import RoutingTable
from services.serving.app.serving import Keeping, Serving
from services.serving.app.shadowing import Shadows
from services.serving.domain.answer import (
    Embedded,
    FinishReason,
    Message,
    Piece,
    Prompt,
    Recognized,
    Sampling,
    Scored,
    Task,
)
from services.serving.domain.names import ModelReference
from services.serving.domain.route import SLOTS, Route, RoutedVersion
from tests.waiting import eventually

NOW = datetime.now(UTC)
MAIL = "jane@example.org"


class Server:
    """Classifies and writes the same to all."""

    async def recognize(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Recognized]:
        raise NotImplementedError

    async def classify(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Scored]:
        return [Scored(scores=(0.9, 0.1))] * len(texts)

    async def embed(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Embedded]:
        raise NotImplementedError

    async def generate(self, version: RoutedVersion, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        # The address is cut in two: pieces must be masked together.
        yield Piece("ask jane@exam", FinishReason.NONE, 5, 1)
        yield Piece("ple.org", FinishReason.STOP, 5, 2)


class Bus:
    """Keeps events by topic."""

    def __init__(self) -> None:
        self.events: dict[str, list[OutgoingEvent]] = {PREDICTIONS.name: [], ANSWERS_CAPTURED.name: []}
        self.away = False

    def publish(self, topic: Topic, events: Sequence[OutgoingEvent]) -> None:
        if self.away:
            raise UnavailableError("no broker")
        self.events[topic.name] += events

    @property
    def captured(self) -> list[AnswerCaptured]:
        found: list[Any] = [event.message for event in self.events[ANSWERS_CAPTURED.name]]
        return found


class World:
    """Serving with a log of what was served."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bus, self.registry = folder, Bus(), CollectorRegistry()
        self.rules = CaptureRules()
        self.log = self.open()

    def open(self, **options: Any) -> BackgroundServedLog:
        return BackgroundServedLog(self.bus, CollectorRegistry(), AnswerJournal(self.folder), **options)

    def serving(self) -> Serving:
        table = RoutingTable()
        labels = ("good", "bad")
        users = ((0, SLOTS),)
        routes = [
            Route("m", NOW, (RoutedVersion("m", 1, Task.TEXT_CLASSIFICATION, labels=labels, users=users),)),
            Route("w", NOW, (RoutedVersion("w", 1, Task.GENERATION, users=users),)),
        ]
        table.replace(routes)
        server, clock, counts = Server(), SystemClock(), PrometheusShadowCounts(CollectorRegistry())
        shadows = Shadows(table, server, self.log, counts, clock)
        return Serving(table, server, self.log, shadows, clock, self.rules)

    def capture(self, *models: str, sample: float = 1.0) -> None:
        self.rules.replace([(model, Capture(sample, mask_of([]))) for model in models])

    def journal(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("*.jsonl"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def predict(world: World, texts: Sequence[str], keeping: Keeping | None = None) -> list[str]:
    serving = world.serving()
    choice = serving.choose(ModelReference("m"), Task.TEXT_CLASSIFICATION)
    found, _ = await serving.predict(choice, texts, keeping or Keeping())
    return [item.answer for item in found]


async def write(world: World, prompt: Prompt, keeping: Keeping | None = None) -> str:
    text, serving = "", world.serving()
    choice = serving.choose(ModelReference("w"), Task.GENERATION)
    async with aclosing(serving.generate(choice, prompt, Sampling(), keeping or Keeping())) as pieces:
        async for piece in pieces:
            text += piece.piece.text
    return text


async def test_without_a_rule_no_text_is_kept(world: World) -> None:
    world.capture("other")
    await predict(world, ["secret"])
    world.log.close()
    assert world.bus.captured == []
    assert len(world.bus.events[PREDICTIONS.name]) == 1


async def test_a_classified_text_is_kept_masked_with_its_answer(world: World) -> None:
    world.capture("m")
    found = await predict(world, [f"from {MAIL}", "fine"], Keeping(tenant="acme"))
    world.log.close()
    first, second = world.bus.captured
    assert (first.prompt, second.prompt) == ("from [EMAIL]", "fine")
    assert [first.served.answer, second.served.answer] == found
    assert (first.tenant, first.served.role, first.served.label) == ("acme", "serving", "good")
    assert first.served.latency_ms > 0
    assert first.text == ""


async def test_an_answer_is_masked_as_a_whole_and_returned_as_it_is(world: World) -> None:
    world.capture("w")
    assert await write(world, Prompt(text=f"who is {MAIL}?")) == f"ask {MAIL}"
    world.log.close()
    (kept,) = world.bus.captured
    assert (kept.prompt, kept.text, kept.conversation) == ("who is [EMAIL]?", "ask [EMAIL]", False)
    assert kept.served.completion_tokens == 2


async def test_a_conversation_is_kept_as_one(world: World) -> None:
    world.capture("w")
    await write(world, Prompt(conversation=(Message("system", "Be brief."), Message("user", "Hello"))))
    world.log.close()
    (kept,) = world.bus.captured
    assert (kept.prompt, kept.conversation) == ("system: Be brief.\n\nuser: Hello", True)


async def test_a_caller_opts_out(world: World) -> None:
    world.capture("m", "w")
    await predict(world, ["text"], Keeping(store=False))
    await write(world, Prompt(text="text"), Keeping(store=False))
    world.log.close()
    assert world.bus.captured == []
    assert len(world.bus.events[PREDICTIONS.name]) == 2


async def test_a_share_is_kept(world: World) -> None:
    world.capture("m", sample=0.5)
    await predict(world, ["text"] * 200)
    world.log.close()
    assert 60 < len(world.bus.captured) < 140
    world.capture("m", sample=0.0)
    assert world.rules.of("m", "answers/a") is None


async def test_what_waits_in_the_journal_is_masked_and_outlives_the_process(world: World) -> None:
    world.bus.away = True
    world.capture("m", "w")
    await predict(world, [f"from {MAIL}"])
    await write(world, Prompt(text=f"who is {MAIL}?" + "x" * 20_000))
    written = world.journal()
    assert MAIL not in written
    assert written.count("[EMAIL]") == 3
    world.log.close(timeout_s=0.1)
    world.bus.away = False
    world.open().close()
    assert [kept.prompt[:12] for kept in world.bus.captured] == ["from [EMAIL]", "who is [EMAI"]
    assert len(world.bus.events[PREDICTIONS.name]) == 2


async def test_texts_that_wait_are_bounded_and_those_left_out_are_counted(world: World) -> None:
    world.log.close()
    world.bus.away = True
    registry = CollectorRegistry()
    world.log = BackgroundServedLog(world.bus, registry, AnswerJournal(world.folder), captured_limit=25)
    world.capture("m")
    await predict(world, ["ten chars.", "ten chars.", "ten chars."])
    world.bus.away = False
    world.log.close()
    assert len(world.bus.captured) == 2
    assert len(world.bus.events[PREDICTIONS.name]) == 3
    assert registry.get_sample_value("answers_not_captured_total") == 1


def test_a_journal_of_an_earlier_release_is_taken_over(world: World) -> None:
    world.log.close()
    line = (
        '{"served": {"answer": "answers/a", "model_version": "models/m/versions/1", "method": "predict", '
        '"latency_ms": 1.0, "answer_time": "2026-01-01T00:00:00+00:00", "label": "", "score": 0.0, '
        '"prompt_tokens": 0, "completion_tokens": 0}, "traceparent": ""}\n'
    )
    (world.folder / "0.jsonl").write_text(line)
    world.open().close()
    assert [event.key for event in world.bus.events[PREDICTIONS.name]] == ["answers/a"]
    assert Served("a", "v", "predict", 1.0, NOW).captured is None


def policies() -> pb.WatchCaptureResponse:
    message = pb.WatchCaptureResponse()
    first = message.policies.add(model="models/m")
    first.capture.masks.add(name="mask_pii").params.update({"tokens": {"email": "@"}})
    message.policies.add(model="models/new").capture.masks.add(name="mask_of_a_later_release")
    return message


class Stub:
    """Sends the rules once, then is unavailable."""

    def __init__(self, *messages: pb.WatchCaptureResponse) -> None:
        self.messages = list(messages)

    async def WatchCapture(self, _: Any) -> AsyncGenerator[pb.WatchCaptureResponse, None]:  # noqa: N802
        for message in self.messages:
            yield message


async def saved(feed: CaptureFeed, file: Path) -> None:
    """Lets a feed run until it has written its file."""
    task = asyncio.create_task(feed.run())
    await eventually(file.exists)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_rules_outlive_a_restart_without_the_pipeline_service(tmp_path: Path) -> None:
    rules, file = CaptureRules(), tmp_path / "gateway" / "capture.json"
    await saved(CaptureFeed(Stub(policies()), rules, file), file)
    again = CaptureRules()
    await CaptureFeed(Stub(), again, file).restore()
    for known in (rules, again):
        capture = known.of("m", "answers/a")
        assert capture is not None
        assert capture.mask(f"to {MAIL}") == "to @"
        # How it would have to be masked is not known here, so nothing is kept.
        assert known.of("new", "answers/a") is None


async def test_who_asked_is_kept_as_a_pseudonym_by_the_key_of_the_mesh(world: World, tmp_path: Path) -> None:
    key, file = user_key(b"secret"), tmp_path / "gateway" / "capture.json"
    message = pb.WatchCaptureResponse(policies=[pb.CapturePolicy(model="models/m")], user_key=key)
    await saved(CaptureFeed(Stub(message), world.rules, file), file)
    # The file has a key, so no other user may read it.
    assert file.stat().st_mode & 0o777 == 0o600
    serving = world.serving()
    for user in ("dora", "dora", "emil", ""):
        choice = serving.choose(ModelReference("m"), Task.TEXT_CLASSIFICATION, user=user)
        await serving.predict(choice, ["text"], Keeping(tenant="acme"))
    assert "dora" not in world.journal()
    world.log.close()
    found = [event.asked_by for event in world.bus.captured]
    assert found == [user_pseudonym(key, "acme", user) for user in ("dora", "dora", "emil", "")]
    assert found[3] == ""
    assert len(set(found)) == 3
    # A pipeline service of an earlier release sends no key.
    known = world.rules.of("m", "answers/a")
    assert known is not None
    assert (await replace(known, user_key="").of(Prompt(text="a"), "b", "acme", "dora")).asked_by == ""


async def test_a_damaged_file_of_rules_keeps_nothing(tmp_path: Path) -> None:
    rules, file = CaptureRules(), tmp_path / "capture.json"
    file.write_text("{")
    await CaptureFeed(Stub(), rules, file).restore()
    assert rules.of("m", "answers/a") is None
