"""A cycle: its stages, what was learnt and how well, the builds, and what the gate found."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from starlette.responses import Response
from tidemill.pipeline.v1.cycle_pb2 import Cycle, GateVerdict, Stage
from tidemill.pipeline.v1.pipeline_service_pb2 import CancelCycleRequest, GetCycleRequest
from tidemill.pipeline.v1.rollout_pb2 import ModelRollout
from tidemill.pipeline.v1.rollout_service_pb2 import ListRolloutsRequest
from tidemill.training.v1.run_pb2 import LossPoint, Variant
from tidemill.training.v1.training_service_pb2 import GetRunRequest

from gateway.cards.report import report_facts
from gateway.console.calls import may, section
from gateway.console.pages.loops import picture
from gateway.console.view import Page, View
from gateway.figures.marks import BuildMark, front
from gateway.formats import Status, metric_name

_ACT_S = 60.0
_ROLLOUTS = 50


@dataclass(frozen=True, slots=True)
class Build:
    """A build with the gate's verdict, where there is one."""

    variant: Variant
    verdict: GateVerdict | None
    status: Status


def builds(cycle: Cycle) -> list[Build]:
    """All builds of a cycle, with what the gate found."""
    verdicts = {verdict.precision: verdict for verdict in cycle.verdicts}
    return [
        Build(variant, verdict := verdicts.get(variant.precision), _judged(verdict, cycle))
        for variant in cycle.report.variants
    ]


def _judged(verdict: GateVerdict | None, cycle: Cycle) -> Status:
    if verdict is None:
        return Status("not judged", "idle")
    if verdict.chosen:
        return Status("published" if cycle.model_version else "chosen", "good")
    return Status("passed", "idle") if verdict.passed else Status("refused", "bad")


def builds_plot(found: Sequence[Build]) -> Markup:
    """Builds by speed, quality and size; empty for a single one, which is beside no other."""
    marks = [
        BuildMark(
            build.variant.precision,
            build.variant.tokens_per_second or build.variant.examples_per_second,
            build.variant.quality.value,
            build.variant.size_bytes,
            build.status.tone,
        )
        for build in found
    ]
    if len(marks) < 2:
        return Markup("")
    unit = "tokens a second" if found[0].variant.tokens_per_second else "texts a second"
    return front(marks, unit, metric_name(found[0].variant.quality.name))


def rejections(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Reasons with their counts, the most frequent first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


async def cycle(view: View) -> Response:
    """The page."""
    name = _name(view)
    found = (await view.services.pipeline.GetCycle(GetCycleRequest(name=name))).cycle
    rollout = await _rollout_of(view, found)
    shown = facts(found, await _losses(view, found))
    return view.page("cycle.html", rollout=rollout, may_cancel=may("PipelineService", "CancelCycle"), **shown)


async def _losses(view: View, found: Cycle) -> Sequence[LossPoint]:
    """The loss of the run that trains now; empty without one."""
    names = [
        name
        for stage in found.stages
        if stage.state == Stage.STATE_RUNNING
        for name in stage.resources
        if name.startswith("runs/")
    ]
    if not names:
        return ()
    answered = await section(view.services.training.GetRun(GetRunRequest(name=names[-1])))
    return answered.found.run.loss_curve if answered.found else ()


def facts(found: Cycle, losses: Sequence[LossPoint] = ()) -> dict[str, Any]:
    """What the page shows of a cycle itself; `losses` are those of a run that trains now."""
    report = found.report
    built = builds(found)
    return {
        "cycle": found,
        "stages": picture(found, time.time()),
        "resources": list(dict.fromkeys(name for stage in found.stages for name in stage.resources)),
        **report_facts(report, losses),
        "builds": built,
        "front": builds_plot(built),
        "rejected": rejections(found.dataset_version.rejected_by_reason),
        "refresh": 3 if found.state == Cycle.STATE_RUNNING else 0,
    }


async def _rollout_of(view: View, found: Cycle) -> ModelRollout | None:
    if not found.spec.rollout.model:
        return None
    request = ListRolloutsRequest(model=found.spec.rollout.model, page_size=_ROLLOUTS)
    answered = await section(view.services.rollouts.ListRollouts(request))
    rollouts = answered.found.rollouts if answered.found else ()
    return next((each for each in rollouts if each.cycle == found.name), None)


async def ask_cancel(view: View) -> Response:
    """Asks before a cycle is cancelled."""
    return view.page(
        "confirm.html",
        title="Cancel this cycle?",
        what="The cycle and the work that it started stop. Finished work is kept for the next one.",
        word="Cancel the cycle",
        back=f"/{_name(view)}",
        dangerous=True,
        with_reason=False,
    )


async def cancel(view: View) -> Response:
    """Cancels a cycle."""
    name = _name(view)
    request = CancelCycleRequest(request_id=view.form.get("request_id", ""), name=name)
    await view.services.pipeline.CancelCycle(request, timeout=_ACT_S)
    return view.go(f"/{name}", note="cancelled")


def _name(view: View) -> str:
    return f"pipelines/{view.parameter('pipeline')}/cycles/{view.parameter('cycle')}"


_PATH = "/pipelines/{pipeline}/cycles/{cycle}"
PAGES = (
    Page("GET", _PATH, cycle),
    Page("GET", f"{_PATH}/cancel", ask_cancel),
    Page("POST", f"{_PATH}/cancel", cancel),
)
