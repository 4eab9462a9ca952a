"""A request that meets a version which has left Triton is answered by the route as it is now."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from services.kit.clock import SystemClock
from services.serving.app.ports import NotLoadedError, Served
from services.serving.app.routing import RoutingTable
from services.serving.app.serving import Serving
from services.serving.app.shadowing import Shadows
from services.serving.domain.answer import Embedded, FinishReason, Piece, Prompt, Recognized, Sampling, Scored, Task
from services.serving.domain.names import ModelReference
from services.serving.domain.route import SLOTS, Route, RoutedVersion
from tests.waiting import eventually


@dataclass
class Server:
    """Has the versions in `loaded`."""

    loaded: set[int] = field(default_factory=set)
    asked: list[int] = field(default_factory=list)

    def _check(self, version: RoutedVersion) -> None:
        self.asked.append(version.number)
        if version.number not in self.loaded:
            raise NotLoadedError(f"{version.name} is not loaded")

    async def recognize(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Recognized]:
        self._check(version)
        return [Recognized() for _ in texts]

    async def classify(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Scored]:
        self._check(version)
        return [Scored(scores=(1.0,)) for _ in texts]

    async def embed(self, version: RoutedVersion, texts: Sequence[str]) -> Sequence[Embedded]:
        self._check(version)
        return [Embedded(values=array("f", [3.0, 4.0])) for _ in texts]

    async def generate(self, version: RoutedVersion, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        self._check(version)
        yield Piece("a", FinishReason.STOP, 3, 1)


class Nothing:
    """Takes no note."""

    def add(self, served: Sequence[Served]) -> None:
        """Forgets it."""

    def count(self, outcome: str) -> None:
        """Forgets it."""


def route(number: int, task: Task, generation: int = 1) -> Route:
    version = RoutedVersion("m", number, task, labels=("a",), users=((0, SLOTS),), generation=generation)
    return Route("m", datetime(2026, 1, 1, tzinfo=UTC), (version,))


def parts(task: Task) -> tuple[RoutingTable, Server, Serving]:
    table, server, clock = RoutingTable(), Server(), SystemClock()
    table.replace([route(1, task)])
    return table, server, Serving(table, server, Nothing(), Shadows(table, server, Nothing(), Nothing(), clock), clock)


async def ask(serving: Serving, task: Task, asked: str = "") -> int:
    """The version that answered."""
    choice = serving.choose(ModelReference("m", asked), task)
    if task is Task.GENERATION:
        pieces = serving.generate(choice, Prompt(text="x"), Sampling())
        return [item.version.number async for item in pieces].pop()
    return (await serving.predict(choice, ["x"]))[1].number


@pytest.mark.parametrize("task", list(Task))
async def test_a_route_that_arrives_soon_is_waited_for(task: Task) -> None:
    table, server, serving = parts(task)
    server.loaded = {2}
    answer = asyncio.create_task(ask(serving, task))
    await eventually(lambda: server.asked == [1])
    table.change([route(2, task)])
    assert await answer == 2
    assert server.asked == [1, 2]


@pytest.mark.parametrize("task", list(Task))
async def test_a_version_that_was_loaded_again_is_asked_again(task: Task) -> None:
    table, server, serving = parts(task)
    answer = asyncio.create_task(ask(serving, task))
    await eventually(lambda: server.asked == [1])
    server.loaded = {1}
    table.change([route(1, task, generation=2)])
    assert await answer == 1


@pytest.mark.parametrize("task", list(Task))
async def test_a_caller_who_named_the_version_gets_no_other(task: Task) -> None:
    _, server, serving = parts(task)
    with pytest.raises(NotLoadedError):
        await ask(serving, task, "1")
    assert server.asked == [1]


@pytest.mark.parametrize("task", list(Task))
async def test_an_unchanged_route_is_not_asked_twice(task: Task) -> None:
    _, server, serving = parts(task)
    with pytest.raises(NotLoadedError):
        await ask(serving, task)
    assert server.asked == [1]
