"""A loop: the picture of its last cycle, why the next one starts when, and the cycles before."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.responses import Response
from tidemill.pipeline.v1.cycle_pb2 import Cycle, Stage
from tidemill.pipeline.v1.pipeline_service_pb2 import ListCyclesRequest
from tidemill.pipeline.v1.rollout_service_pb2 import ListRolloutsRequest
from tidemill.pipeline.v1.trigger_service_pb2 import GetTriggerRequest, PauseTriggerRequest, ResumeTriggerRequest

from gateway.console.calls import may, section, sections
from gateway.console.view import Page, View
from gateway.console.words import stage_status
from gateway.formats import Status, duration, elapsed, figures
from services.kit.errors import NotFoundError

_CYCLES = 20


@dataclass(frozen=True, slots=True)
class StageNow:
    """A stage of a cycle as the picture shows it."""

    name: str
    status: Status
    took: str
    detail: str
    done: int
    total: int
    """Of the phase that is running; zero when unknown."""
    resources: Sequence[str]


def picture(cycle: Cycle, now: float) -> list[StageNow]:
    """The stages of a cycle.

    Args:
        cycle: to show.
        now: seconds since 1970.
    """
    return [_stage(stage, now) for stage in cycle.stages]


def _stage(stage: Stage, now: float) -> StageNow:
    running = stage.state == Stage.STATE_RUNNING
    seconds = elapsed(stage, now)
    progress = stage.progress
    detail = stage.summary
    if running:
        phase = progress.phase if progress.phase != stage.name else ""
        waiting = f"waits: {progress.waiting.message}" if progress.waiting.message else ""
        detail = " · ".join(part for part in (phase, *figures(progress), waiting) if part)
    return StageNow(
        name=stage.name,
        status=Status("reused", "good") if stage.reused and not running else stage_status(stage),
        took="" if seconds is None else duration(seconds),
        detail=detail,
        done=progress.done if running else 0,
        total=progress.total if running else 0,
        resources=list(stage.resources),
    )


async def loop(view: View) -> Response:
    """The page."""
    name = f"pipelines/{view.parameter('pipeline')}"
    listed, triggered = await sections(
        view.services.pipeline.ListCycles(
            ListCyclesRequest(pipeline=name, page_size=_CYCLES, page_token=view.next_token)
        ),
        view.services.trigger.GetTrigger(GetTriggerRequest(pipeline=name)),
    )
    cycles = list(listed.found.cycles) if listed.found else []
    # A pipeline without triggers is started by hand only.
    by_hand = isinstance(triggered.error, NotFoundError)
    if listed.found and not cycles and by_hand:
        raise NotFoundError(f"The pipeline {view.parameter('pipeline')} has neither cycles nor triggers.")
    newest = cycles[0] if cycles else None
    rollouts = []
    if newest is not None:
        asked = view.services.rollouts.ListRollouts(ListRolloutsRequest(model=newest.spec.rollout.model, page_size=5))
        answered = await section(asked)
        rollouts = list(answered.found.rollouts) if answered.found else []
    running = newest is not None and newest.state == Cycle.STATE_RUNNING
    return view.page(
        "loop.html",
        name=name,
        cycles=cycles,
        newest=newest if not view.next_token else None,
        stages=picture(newest, time.time()) if newest is not None and not view.next_token else [],
        trigger=triggered.found.trigger if triggered.found else None,
        by_hand=by_hand,
        rollouts=rollouts,
        errors=[each.error for each in (listed, triggered) if each.error and not isinstance(each.error, NotFoundError)],
        refresh=3 if running else 15,
        older=listed.found.next_page_token if listed.found else "",
        after=view.next_token,
        may_pause=may("TriggerService", "PauseTrigger"),
    )


async def pause(view: View) -> Response:
    """Pauses the triggers of the pipeline."""
    pipeline = view.parameter("pipeline")
    request = PauseTriggerRequest(
        request_id=view.form.get("request_id", ""), pipeline=f"pipelines/{pipeline}", reason=view.form.get("reason", "")
    )
    await view.services.trigger.PauseTrigger(request)
    return view.go(f"/pipelines/{pipeline}", note="paused")


async def resume(view: View) -> Response:
    """Ends the pause."""
    pipeline = view.parameter("pipeline")
    request = ResumeTriggerRequest(request_id=view.form.get("request_id", ""), pipeline=f"pipelines/{pipeline}")
    await view.services.trigger.ResumeTrigger(request)
    return view.go(f"/pipelines/{pipeline}", note="resumed")


PAGES = (
    Page("GET", "/pipelines/{pipeline}", loop),
    Page("POST", "/pipelines/{pipeline}/pause", pause),
    Page("POST", "/pipelines/{pipeline}/resume", resume),
)
