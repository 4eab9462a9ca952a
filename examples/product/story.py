"""What happens to the product, and what the mesh does about it without a person who operates it.

1. It starts with a weak model: few tickets, all about hotels.
2. Customers correct it; a trigger starts a cycle; the new version is introduced step by step.
3. A shop opens: tickets for two teams that are new to the model. Its quality falls, and recovers in the same way.
4. A data set with teams at random: the gate refuses its model.
5. A data set about hotels only: its model is good on the hold-out, bad with users, and rolled back.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from tidemill.pipeline.v1.cycle_pb2 import Cycle
from tidemill.pipeline.v1.rollout_pb2 import ModelRollout
from tidemill_client import AsyncClient

from examples.product.mesh import Mesh
from examples.product.report import DRIFT, Event, plot, quality, recovery
from examples.product.tickets import HOTEL_TEAMS, Kind, Ticket, World, write_tickets
from examples.product.users import MODEL, Customers

T = TypeVar("T")

PIPELINE = Path(__file__).parent / "tickets.yaml"
_ENDED = (ModelRollout.STATE_PROMOTED, ModelRollout.STATE_ROLLED_BACK)
# Of so few the first model is weak, and the first that customers teach is clearly better.
FIRST_TICKETS = 50
# Enough that a model of random labels hardly ever reaches the least quality of its gate by chance.
RANDOM_TICKETS, MIN_QUALITY = 500, 0.6
HOTEL_TICKETS = 400
_POLL_S = 1.0
_FEW = 20
"""Fewest calls of a row of the table."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much happens, and how fast."""

    per_s: float
    """Tickets a second."""
    whole: bool
    """All of the story; else the shop opens at once, and there is no sabotage."""
    patience_s: float
    """For one step: a cycle and the roll-out of its version."""


# Each ticket is written once: 10,400 of them last for 35 minutes.
WHOLE = Plan(per_s=5, whole=True, patience_s=1500)
SHORT = Plan(per_s=16, whole=False, patience_s=1200)


class StoryError(Exception):
    """What should have happened did not."""


@dataclass
class Story:
    """The run of the story."""

    mesh: Mesh
    folder: Path
    """Readable for the mesh: its pipeline files and tickets."""
    world: World
    customers: Customers
    plan: Plan
    events: list[Event] = field(default_factory=list)
    _for_random: list[Ticket] = field(init=False)
    _for_hotels: list[Ticket] = field(init=False)
    _began: float = field(default_factory=time.monotonic)
    _seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        # Before customers use them up.
        self._for_random = self.world.take(Kind.HOTEL, RANDOM_TICKETS)
        self._for_hotels = self.world.take(Kind.HOTEL, HOTEL_TICKETS)

    @property
    def now(self) -> float:
        """Seconds since the customers came."""
        return time.monotonic() - self._began

    def note(self, what: str, why: str = "", version: str = "") -> None:
        """Something happened, to a version of the model if one is named."""
        self.events.append(Event(self.now, what, why, version.rpartition("/")[2]))
        sys.stdout.write(f"{self.now / 60:5.1f} min  {what}{'  ' if why else ''}{why}\n")
        sys.stdout.flush()

    async def until(self, wanted: Callable[[], Awaitable[T | None]], what: str) -> T:
        """Waits for something that the mesh does.

        Raises:
            StoryError: it did not come.
        """
        last = time.monotonic() + self.plan.patience_s
        while (found := await wanted()) is None:
            if time.monotonic() > last:
                raise StoryError(f"{what} did not come within {self.plan.patience_s:.0f} s")
            if self.customers.exhausted:
                raise StoryError(f"{what} did not come before the customers' tickets were used up")
            await asyncio.sleep(_POLL_S)
        return found

    async def follow_mesh(self) -> None:
        """Notes each decision of the mesh as it enters the audit trail."""
        while True:
            for entry in await self.mesh.decisions():
                if entry.name not in self._seen:
                    self._seen.add(entry.name)
                    if entry.action.startswith("rollout."):
                        self.note(entry.action.removeprefix("rollout."), entry.reason, entry.facts["candidate"])
            await asyncio.sleep(_POLL_S)

    async def begin(self) -> None:
        """The first model: trained on what there is."""
        write_tickets(self.folder / "tickets.jsonl", self.world.take(Kind.HOTEL, FIRST_TICKETS))
        name = await self.mesh.start_cycle(self._file("tickets", "tickets.jsonl"))
        await self._cycle(name, Cycle.STATE_SUCCEEDED)
        self._began = time.monotonic()
        self.customers.begin()
        self.note("customers come", f"the model has seen {FIRST_TICKETS} tickets about hotels")

    async def learn(self, known: Sequence[str]) -> None:
        """Waits until a version of a cycle that the mesh started by itself serves all customers.

        Other versions may be taken back meanwhile, for example because a newer one was made before they had their turn.

        Args:
            known: cycles that do not count, for they began before.
        """
        noted = set(known)

        async def promoted() -> ModelRollout | None:
            for cycle in await self.mesh.cycles("tickets"):
                if cycle.name not in noted:
                    noted.add(cycle.name)
                    self.note("a cycle starts", " ".join(cycle.reasons))
            return next(
                (
                    each
                    for each in await self.mesh.rollouts(MODEL)
                    if each.state == ModelRollout.STATE_PROMOTED and each.cycle not in known
                ),
                None,
            )

        await self.until(promoted, "a version that customers taught, and that serves all of them,")

    async def known(self) -> list[str]:
        """Names of the cycles so far."""
        return [cycle.name for cycle in await self.mesh.cycles("tickets")]

    async def feed_random_labels(self) -> None:
        """A candidate that the gate must refuse."""
        labels = random.Random(2)  # noqa: S311 - a simulation
        tickets = [
            Ticket(each.text, labels.choice(tuple(HOTEL_TEAMS.values())), each.kind) for each in self._for_random
        ]
        write_tickets(self.folder / "random.jsonl", tickets)
        name = await self.mesh.start_cycle(self._file("tickets-random", "random.jsonl"))
        self.note("teams at random", "a model is trained on labels that mean nothing")
        cycle = await self._cycle(name, Cycle.STATE_REJECTED)
        self.note("refused by the gate", "; ".join(verdict.why for verdict in cycle.verdicts) or "no build passed")

    async def train_on_hotels_only(self) -> None:
        """A candidate that is good on its hold-out and bad with customers."""
        write_tickets(self.folder / "hotels.jsonl", self._for_hotels)
        name = await self.mesh.start_cycle(self._file("tickets-hotels", "hotels.jsonl"))
        self.note("hotels only", "a model is trained on hotels only, and its hold-out knows nothing else, either")
        await self._cycle(name, Cycle.STATE_SUCCEEDED)
        rollout = await self._rollout(name)
        if rollout.state != ModelRollout.STATE_ROLLED_BACK:
            raise StoryError(f"the version that is bad with customers was promoted: {rollout.reason}")

    async def _cycle(self, name: str, wanted: Cycle.State.ValueType) -> Cycle:
        async def ended() -> Cycle | None:
            cycle = await self.mesh.cycle(name)
            return None if cycle.state == Cycle.STATE_RUNNING else cycle

        cycle = await self.until(ended, f"the end of {name}")
        if cycle.state != wanted:
            raise StoryError(f"{name}: {Cycle.State.Name(cycle.state)}: {cycle.failure.message}")
        return cycle

    async def _rollout(self, cycle: str) -> ModelRollout:
        async def ended() -> ModelRollout | None:
            found = [each for each in await self.mesh.rollouts(MODEL) if each.cycle == cycle]
            return found[0] if found and found[0].state in _ENDED else None

        return await self.until(ended, f"the end of the roll-out of {cycle}")

    def _file(self, name: str, tickets: str) -> Path:
        """The pipeline's file, of another name and on other tickets."""
        spec: dict[str, Any] = yaml.safe_load(PIPELINE.read_text(encoding="utf-8"))
        if name != spec["name"]:
            spec["name"] = name
            spec["dataset"]["name"] = f"datasets/{name}"
            spec["gate"]["min_quality"] = MIN_QUALITY
            spec["sources"][0]["source"] = name
            for loop in ("capture", "feedback", "triggers"):
                del spec[loop]
        spec["sources"][0]["json_lines"]["uri"] = tickets
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(spec, allow_unicode=True, sort_keys=False), encoding="utf-8")
        return file


@asynccontextmanager
async def _open_for_business(story: Story) -> Any:
    """Customers call, and the mesh's decisions are noted, within the block."""
    stop = asyncio.Event()
    calls = asyncio.create_task(story.customers.run(stop))
    notes = asyncio.create_task(story.follow_mesh())
    try:
        yield
    finally:
        stop.set()
        await calls
        await asyncio.sleep(3 * _POLL_S)
        notes.cancel()


async def tell(mesh: Mesh, reviews: Path, out: Path, plan: Plan) -> int:
    """Runs the story on a mesh that is up; returns an exit status."""
    folder = out / "files"
    folder.mkdir(parents=True, exist_ok=True)
    world = World(reviews)
    async with AsyncClient(mesh.address, key=mesh.key) as client:
        story = Story(mesh, folder.resolve(), world, Customers(client, world, plan.per_s), plan)
        await story.begin()
        async with _open_for_business(story):
            if plan.whole:
                await story.learn(await story.known())
            known = await story.known()
            world.drifted = True
            story.note(DRIFT, "seven tickets of ten are about books and computers now, for teams that are new")
            await story.learn(known)
            if plan.whole:
                await mesh.command("triggers", "pause", "tickets")
                await story.feed_random_labels()
                await story.train_on_hotels_only()
                await mesh.command("triggers", "resume", "tickets")
                await asyncio.sleep(30)
        return await _end(story, out)


async def _end(story: Story, out: Path) -> int:
    """Prints the table, writes the plot, and counts from outside what the mesh should have."""
    customers, mesh = story.customers, story.mesh
    plot(out / "loop.png", customers.asked, story.events)
    marks = [event for event in story.events if event.what in ("customers come", DRIFT, "promote")]
    ends = [*(event.at for event in marks[1:]), story.now]
    sys.stdout.write("\nfrom                      right answers\n")
    for event, end in zip(marks, ends, strict=True):
        # Two marks a moment apart leave a handful of calls between them, which say nothing.
        if (found := quality(customers.asked, event.at, end)) and found.count >= _FEW:
            low, high = found.interval
            what = f"version {event.version} promoted" if event.version else event.what
            sys.stdout.write(f"{what:24}  {found.share:.1%}  [{low:.1%}, {high:.1%}]  of {found.count:,}\n")
    shop = next(event.at for event in story.events if event.what == DRIFT)
    back = recovery(customers.asked, shop)
    if quality(customers.asked, 0, shop):  # in the short story it opens at once
        recovered = (
            "were not as good as before again" if back is None else f"were as good again after {back / 60:.1f} min"
        )
        sys.stdout.write(f"\nWhen the shop had opened, answers {recovered}.\n")
    answered = {each.answer for each in customers.asked if each.right is not None}
    failed = [each for each in customers.asked if each.right is None]
    lost = answered - await mesh.captured_answers(MODEL)
    unjudged = set(customers.feedback) - await mesh.judged_answers(MODEL)
    sys.stdout.write(
        f"{len(customers.asked):,} calls, {len(failed)} failed; {len(lost)} answers and {len(unjudged)} judgements "
        f"lost; {customers.corrections:,} corrections. Plot: {out / 'loop.png'}\n"
    )
    for each in failed[:5]:
        sys.stdout.write(f"failed at {each.at:.0f} s: {each.error}\n")
    return 1 if failed or lost or unjudged else 0
