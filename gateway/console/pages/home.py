"""The first page: what needs a person, the loops, and the health of every part."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from starlette.responses import Response
from tidemill.inference.v1.inference_service_pb2 import ListRoutesRequest
from tidemill.inference.v1.route_pb2 import Route
from tidemill.pipeline.v1.cycle_pb2 import Cycle
from tidemill.pipeline.v1.pipeline_service_pb2 import ListCyclesRequest
from tidemill.pipeline.v1.review_pb2 import ReviewAgreement
from tidemill.pipeline.v1.review_service_pb2 import MeasureAgreementRequest
from tidemill.pipeline.v1.rollout_pb2 import ModelRollout
from tidemill.pipeline.v1.rollout_service_pb2 import ListRolloutsRequest
from tidemill.pipeline.v1.trigger_pb2 import Trigger
from tidemill.pipeline.v1.trigger_service_pb2 import ListTriggersRequest
from tidemill.telemetry.v1.telemetry_service_pb2 import SearchLogsRequest

from gateway.console.calls import sections
from gateway.console.view import Page, View
from gateway.console.words import last, part_status, short
from gateway.formats import Status
from services.kit.errors import TidemillError

_CYCLES = 50
_ROLLOUTS = 50


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a person should look at."""

    tone: str
    what: str
    why: str
    path: str
    """Where to do something about it, below `/console`; empty if nowhere."""


@dataclass(frozen=True, slots=True)
class Loop:
    """A pipeline: its newest cycle and its triggers, where it has them."""

    name: str
    """`pipelines/{pipeline}`."""
    cycle: Cycle | None
    trigger: Trigger | None


def loops(cycles: Sequence[Cycle], triggers: Sequence[Trigger]) -> list[Loop]:
    """Every pipeline that has run lately or has triggers, by name.

    Args:
        cycles: newest first.
        triggers: of all pipelines.
    """
    newest: dict[str, Cycle] = {}
    for cycle in cycles:
        newest.setdefault(cycle.name.partition("/cycles/")[0], cycle)
    by_name = {trigger.pipeline: trigger for trigger in triggers}
    return [Loop(name, newest.get(name), by_name.get(name)) for name in sorted({*newest, *by_name})]


def needs(
    found: Sequence[Loop],
    rollouts: Sequence[ModelRollout],
    reviews: ReviewAgreement | None,
    routes: Sequence[Route],
    parts: Sequence[tuple[str, Status]],
) -> list[Need]:
    """What needs a person, the worst first."""
    all_needs = [
        *_of_parts(parts),
        *_of_routes(routes),
        *_of_loops(found),
        *_of_rollouts(rollouts),
        *_of_reviews(reviews),
    ]
    return sorted(all_needs, key=lambda need: ("bad", "warn", "busy", "idle").index(need.tone))


def _of_parts(parts: Sequence[tuple[str, Status]]) -> Iterator[Need]:
    for name, status in parts:
        if status.tone in ("bad", "warn"):
            # Those with a capital are not services of ours.
            what = name if name[:1].isupper() else f"The {name} service"
            yield Need(status.tone, f"{what}: {status.word}", "", "")


def _of_routes(routes: Sequence[Route]) -> Iterator[Need]:
    for route in routes:
        if route.HasField("withdrawn"):
            yield Need("bad", f"{short(route.model)} is out of service", route.withdrawn.message, f"/{route.model}")


def _of_loops(found: Sequence[Loop]) -> Iterator[Need]:
    for loop in found:
        name, cycle, trigger = short(loop.name), loop.cycle, loop.trigger
        if cycle is not None and cycle.state == Cycle.STATE_FAILED:
            yield Need("bad", f"The last cycle of {name} failed", cycle.failure.message, f"/{cycle.name}")
        if cycle is not None and cycle.state == Cycle.STATE_REJECTED:
            why = next((verdict.why for verdict in cycle.verdicts if not verdict.passed and verdict.why), "")
            yield Need("warn", f"The gate refused the last cycle of {name}", why, f"/{cycle.name}")
        if trigger is not None and trigger.paused:
            yield Need("warn", f"The triggers of {name} are paused", trigger.pause_reason, f"/{loop.name}")
        if trigger is not None and trigger.firings and trigger.firings[0].error:
            error = trigger.firings[0].error
            yield Need("bad", f"A cycle of {name} could not be started", error, f"/{loop.name}")


def _of_rollouts(rollouts: Sequence[ModelRollout]) -> Iterator[Need]:
    for rollout in rollouts:
        version = f"version {last(rollout.candidate)} of {short(rollout.model)}"
        if rollout.state == ModelRollout.STATE_AWAITING_APPROVAL:
            yield Need("warn", f"The roll-out of {version} awaits approval", rollout.reason, f"/{rollout.name}")
        elif rollout.frozen and rollout.state in (ModelRollout.STATE_PENDING, ModelRollout.STATE_RUNNING):
            yield Need("warn", f"The roll-out of {version} is frozen", rollout.reason, f"/{rollout.name}")


def _of_reviews(reviews: ReviewAgreement | None) -> Iterator[Need]:
    if reviews is not None and reviews.pending:
        answers = "1 answer waits" if reviews.pending == 1 else f"{reviews.pending:,} answers wait"
        yield Need("busy", f"{answers} for review", "", "/reviews")


async def home(view: View) -> Response:
    """The page."""
    services = view.services
    cycles, triggers, rollouts, reviews, routes, searched = await sections(
        services.pipeline.ListCycles(ListCyclesRequest(page_size=_CYCLES)),
        services.trigger.ListTriggers(ListTriggersRequest(page_size=1000)),
        services.rollouts.ListRollouts(ListRolloutsRequest(page_size=_ROLLOUTS)),
        services.review.MeasureAgreement(MeasureAgreementRequest()),
        services.inference.ListRoutes(ListRoutesRequest(page_size=1000)),
        # The telemetry service knows where Elasticsearch is; a search of nothing asks it.
        services.telemetry.SearchLogs(SearchLogsRequest(query="_id:none", page_size=1)),
    )
    health, others = await asyncio.gather(view.health.parts(), view.health.infrastructure())
    parts = [(name, part_status(part["status"])) for name, part in health.items()]
    parts += [(name, part_status(state)) for name, state in others.items()]
    parts.append(("Elasticsearch", _elasticsearch(searched.error)))
    found = loops(
        cycles.found.cycles if cycles.found else (),
        triggers.found.triggers if triggers.found else (),
    )
    needed = needs(
        found,
        rollouts.found.rollouts if rollouts.found else (),
        reviews.found.agreement if reviews.found else None,
        routes.found.routes if routes.found else (),
        parts,
    )
    serving = {route.model: route.serving for route in routes.found.routes} if routes.found else {}
    # The health of the parts says already that a service does not answer.
    failed = {each.error.message: each.error for each in (cycles, triggers, rollouts, reviews, routes) if each.error}
    return view.page(
        "home.html",
        needs=needed,
        loops=found,
        parts_=parts,
        serving=serving,
        errors=list(failed.values()),
    )


def _elasticsearch(error: TidemillError | None) -> Status:
    if error is None:
        return part_status("serving")
    # Of a telemetry service that does not answer, or a key that may not search, nothing follows.
    return part_status("unavailable" if error.reason == "ELASTICSEARCH_UNAVAILABLE" else "unknown")


PAGES = (Page("GET", "", home),)
