"""The customers of the example: they ask, read the answer, and some of them say whether it was right."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tidemill_client import AsyncClient, TidemillError

from examples.product.report import Asked
from examples.product.tickets import Ticket, World

MODEL = "tickets"
CUSTOMERS = 5000
# The share of customers who press a button, and of those among them whose ticket was misread who say what it is.
_JUDGE, _CORRECT = 0.7, 0.8


@dataclass
class Customers:
    """Asks at a steady rate until it is stopped. What it counts is what the mesh is checked against."""

    client: AsyncClient
    world: World
    per_s: float
    asked: list[Asked] = field(default_factory=list)
    feedback: list[str] = field(default_factory=list)
    """Ids of the answers that someone judged, and the mesh acknowledged."""
    corrections: int = 0
    exhausted: bool = False
    """Whether there are no more tickets: no one asks any more."""
    _began: float = field(default_factory=time.monotonic)
    _random: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311 - a simulation

    def begin(self) -> None:
        """Their clock starts."""
        self._began = time.monotonic()

    async def run(self, stop: asyncio.Event) -> None:
        """Calls at the rate, however long an answer takes, until `stop` is set or the tickets are used up."""
        tickets: Iterator[Ticket] = self.world.stream()
        async with asyncio.TaskGroup() as calls:
            due = time.monotonic()
            while not stop.is_set():
                ticket = next(tickets, None)
                if ticket is None:
                    self.exhausted = True
                    return
                calls.create_task(self._one(ticket, f"customer-{self._random.randrange(CUSTOMERS)}"))
                due += self._random.expovariate(self.per_s)
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _one(self, ticket: Ticket, user: str) -> None:
        at = time.monotonic() - self._began
        try:
            found = await self.client.predict(MODEL, [ticket.text], user=user, timeout=30)
        except TidemillError as error:
            self.asked.append(Asked(at, ticket.kind, None, "", "", str(error)))
            return
        [prediction] = found
        right = prediction.label == ticket.label
        self.asked.append(Asked(at, ticket.kind, right, found.model_version, prediction.id))
        if self._random.random() < _JUDGE:
            await self._judge(prediction.id, ticket, right, user)

    async def _judge(self, answer: str, ticket: Ticket, right: bool, user: str) -> None:
        corrects = not right and self._random.random() < _CORRECT
        await self.client.feedback(
            answer,
            rating=1.0 if right else -1.0,
            label=ticket.label if corrects else "",
            author=user,
        )
        self.feedback.append(answer)
        self.corrections += corrects
