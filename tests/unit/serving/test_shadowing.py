"""Copies of calls for shadow versions, with a server that answers when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from services.kit.clock import SystemClock
from services.kit.errors import UnavailableError
from services.kit.spans import Span
from services.serving.app.ports import Served
from services.serving.app.routing import RoutingTable
from services.serving.app.serving import Serving
from services.serving.app.shadowing import Shadows
from services.serving.domain.answer import Embedded, FinishReason, Piece, Prompt, Recognized, Sampling, Scored, Task
from services.serving.domain.names import ModelReference
from services.serving.domain.route import SLOTS, Role, Route, RoutedVersion
from tests.waiting import eventually

NOW = datetime(2026, 1, 1, tzinfo=UTC)
M = ModelReference("m")


@dataclass
class Server:
    """Version 1 answers at once; the shadow, version 2, once `go` is set."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[int] = field(default_factory=list)
    error: Exception | None = None

    async def _wait(self, version: RoutedVersion) -> None:
        self.asked.append(version.number)
        if version.role is Role.SHADOW:
            if self.error is not None:
                raise self.error
            await self.go.wait()

    async def classify(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Scored]:
        await self._wait(version)
        return [Scored(scores=(0.9, 0.1) if version.number == 1 else (0.2, 0.8)) for _ in texts]

    async def embed(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Embedded]:
        raise NotImplementedError

    async def recognize(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Recognized]:
        await self._wait(version)
        return [Recognized(spans=(Span(0, 1, "PER"),)) for _ in texts]

    async def generate(self, version: RoutedVersion, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        await self._wait(version)
        yield Piece("a", FinishReason.NONE, 3, 1)
        yield Piece("b", FinishReason.STOP, 3, version.number)


@dataclass
class Log:
    """Keeps what was served, and what became of copies."""

    served: list[Served] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)

    def add(self, served: Sequence[Served]) -> None:
        self.served += served

    def count(self, outcome: str) -> None:
        self.outcomes.append(outcome)

    def of(self, role: Role) -> list[Served]:
        """Answers of versions in this role."""
        return [each for each in self.served if each.role == role]


def parts(task: Task, limit: int = 4) -> tuple[Server, Log, Serving, Shadows]:
    table, server, log, clock = RoutingTable(), Server(), Log(), SystemClock()
    versions = (
        RoutedVersion("m", 1, task, labels=("a", "b"), users=((0, SLOTS),)),
        RoutedVersion("m", 2, task, labels=("a", "b"), role=Role.SHADOW),
    )
    table.replace([Route("m", NOW, versions)])
    shadows = Shadows(table, server, log, log, clock, limit=limit)
    return server, log, Serving(table, server, log, shadows, clock), shadows


async def test_the_caller_does_not_wait_for_a_shadow_whose_answers_are_logged_with_its_own() -> None:
    server, log, serving, _ = parts(Task.TEXT_CLASSIFICATION)
    found, version = await serving.predict(serving.choose(M, Task.TEXT_CLASSIFICATION), ["x", "y"])
    assert (version.number, [item.classified.label for item in found]) == (1, ["a", "a"])
    await eventually(lambda: server.asked == [1, 2])
    assert log.of(Role.SHADOW) == []
    server.go.set()
    await eventually(lambda: log.outcomes == ["answered"])
    shadowed = log.of(Role.SHADOW)
    assert [(each.label, each.model_version) for each in shadowed] == [("b", "models/m/versions/2")] * 2
    assert [each.shadowed_answer for each in shadowed] == [item.answer for item in found]
    assert not {each.answer for each in shadowed} & {item.answer for item in found}


async def test_a_writer_is_copied_once_its_answer_is_complete() -> None:
    server, log, serving, _ = parts(Task.GENERATION)
    server.go.set()
    asked_before_the_end: list[int] = []
    pieces = []
    async for item in serving.generate(serving.choose(M, Task.GENERATION), Prompt(text="x"), Sampling()):
        pieces.append(item)
        if not item.piece.finish_reason:
            asked_before_the_end = list(server.asked)
    assert asked_before_the_end == [1]
    assert {item.version.number for item in pieces} == {1}
    await eventually(lambda: log.outcomes == ["answered"])
    (shadowed,) = log.of(Role.SHADOW)
    assert (shadowed.shadowed_answer, shadowed.completion_tokens) == (pieces[0].answer, 2)


async def test_the_number_of_copies_at_once_is_limited() -> None:
    server, log, serving, shadows = parts(Task.TEXT_CLASSIFICATION, limit=4)
    for _ in range(10):
        await serving.predict(serving.choose(M, Task.TEXT_CLASSIFICATION), ["x"])
    await eventually(lambda: server.asked.count(2) == 4)
    assert log.outcomes == ["dropped"] * 6
    assert len(log.of(Role.SERVING)) == 10
    server.go.set()
    await eventually(lambda: log.outcomes.count("answered") == 4)
    await serving.predict(serving.choose(M, Task.TEXT_CLASSIFICATION), ["x"])
    await eventually(lambda: log.outcomes.count("answered") == 5)
    await shadows.close()


@pytest.mark.parametrize("error", [UnavailableError("away"), RuntimeError("a defect")])
async def test_a_shadow_that_fails_is_counted_and_no_one_else_notices(error: Exception) -> None:
    server, log, serving, _ = parts(Task.TEXT_CLASSIFICATION)
    server.error = error
    found, _ = await serving.predict(serving.choose(M, Task.TEXT_CLASSIFICATION), ["x"])
    assert found[0].classified.label == "a"
    await eventually(lambda: log.outcomes == ["failed"])
    (failed,) = log.of(Role.SHADOW)
    assert (failed.code, failed.shadowed_answer) == (getattr(error, "code", "INTERNAL"), found[0].answer)


async def test_a_caller_who_names_a_version_gets_that_one_even_a_shadow() -> None:
    server, log, serving, _ = parts(Task.TEXT_CLASSIFICATION)
    server.go.set()
    _, version = await serving.predict(serving.choose(ModelReference("m", "2"), Task.TEXT_CLASSIFICATION), ["x"])
    assert (version.number, server.asked, log.outcomes) == (2, [2], [])
