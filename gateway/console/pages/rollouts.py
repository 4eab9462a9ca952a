"""Roll-outs: which versions are on their way to users, what the figures say, and a person's orders."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from starlette.responses import Response
from tidemill.pipeline.v1.cycle_pb2 import AbTest
from tidemill.pipeline.v1.rollout_pb2 import ModelRollout, RolloutStep
from tidemill.pipeline.v1.rollout_service_pb2 import (
    ApproveRolloutRequest,
    ForceRolloutRequest,
    FreezeRolloutRequest,
    GetRolloutRequest,
    ListAuditEntriesRequest,
    ListRolloutsRequest,
    ResumeRolloutRequest,
    RollBackRolloutRequest,
)

from gateway.console.calls import may, section
from gateway.console.view import Page, View
from gateway.figures.lines import Estimate, confidence_sequence
from gateway.figures.marks import Interval, intervals
from gateway.formats import Status
from services.kit.errors import NotFoundError

_ACT_S = 600.0
"""Promoting may load a version first."""
_ENTRIES = 30
_ENDED = (ModelRollout.STATE_PROMOTED, ModelRollout.STATE_ROLLED_BACK)


@dataclass(frozen=True, slots=True)
class Order:
    """What a person may order of a roll-out."""

    method: str
    request: Callable[..., Any]
    word: str
    asks: str
    warns: str
    note: str
    dangerous: bool = False


ORDERS = {
    "approve": Order(
        "ApproveRollout",
        ApproveRolloutRequest,
        "Approve",
        "Approve the next step?",
        "The roll-out takes the step that it proposes.",
        "approved",
    ),
    "freeze": Order(
        "FreezeRollout",
        FreezeRolloutRequest,
        "Freeze",
        "Freeze this roll-out?",
        "It stays at its step until it is resumed. Guard-rails still roll it back.",
        "frozen",
    ),
    "resume": Order(
        "ResumeRollout",
        ResumeRolloutRequest,
        "Resume",
        "Resume this roll-out?",
        "It takes its next steps by itself again.",
        "resumed",
    ),
    "force": Order(
        "ForceRollout",
        ForceRolloutRequest,
        "Promote by force",
        "Promote the new version now?",
        "All users get the new version, whatever the figures say.",
        "forced",
        dangerous=True,
    ),
    "roll-back": Order(
        "RollBackRollout",
        RollBackRolloutRequest,
        "Roll back",
        "Roll back?",
        "The roll-out ends, and all users get the version before.",
        "rolledback",
        dangerous=True,
    ),
}


def orders_for(rollout: ModelRollout) -> list[str]:
    """What can be ordered of a roll-out in its state."""
    if rollout.state in _ENDED:
        return []
    found = ["approve"] if rollout.state == ModelRollout.STATE_AWAITING_APPROVAL else []
    return [*found, "resume" if rollout.frozen else "freeze", "force", "roll-back"]


@dataclass(frozen=True, slots=True)
class StepNow:
    """A step as the page shows it."""

    word: str
    status: Status
    step: RolloutStep


def steps_of(rollout: ModelRollout) -> list[StepNow]:
    """The steps, in order."""
    return [StepNow(step_word(step), _step_status(rollout, at, step), step) for at, step in enumerate(rollout.steps)]


def step_word(step: RolloutStep) -> str:
    """`shadow`, `canary 5 %`, `comparison 50 %`."""
    kind = {RolloutStep.KIND_SHADOW: "shadow", RolloutStep.KIND_CANARY: "canary", RolloutStep.KIND_AB: "comparison"}
    word = kind.get(step.kind, "step")
    return f"{word} {step.share * 100:.3g} %" if step.share else word


def _step_status(rollout: ModelRollout, at: int, step: RolloutStep) -> Status:
    if step.HasField("end_time") or at < rollout.step:
        return Status("done", "good")
    if at > rollout.step or not step.HasField("start_time"):
        return Status("pending", "idle")
    return Status("ended", "idle") if rollout.state in _ENDED else Status("now", "busy")


_METRICS = {
    AbTest.METRIC_UNSPECIFIED: "share of accepted answers",
    AbTest.METRIC_ACCEPTED: "share of accepted answers",
    AbTest.METRIC_RATING: "mean rating",
    AbTest.METRIC_LATENCY: "mean latency in milliseconds",
    AbTest.METRIC_JUDGED: "mean rating by a judge",
}


def advantage(rollout: ModelRollout) -> Markup:
    """The candidate's mean less the champion's, with its confidence sequence; empty as long as too few have judged."""
    if not rollout.HasField("difference"):
        return Markup("")
    low, high = rollout.lower, rollout.upper
    better = rollout.plan.ab.metric != AbTest.METRIC_LATENCY
    tone = "warn"
    if low > 0 or high < 0:
        tone = "good" if (low > 0) is better else "bad"
    return intervals([Interval("candidate", rollout.difference, low, high, tone)], zero=True)


def rules_of(rollout: ModelRollout) -> list[tuple[str, str]]:
    """What decides: the comparison and the guard-rails of the plan, as far as it has them."""
    plan, rules = rollout.plan, []
    if plan.HasField("ab"):
        margin = f", worse by {plan.ab.margin:g} at most" if plan.ab.margin else ""
        alpha = (
            f"; a version that is not better is promoted in {plan.ab.alpha:.0%} of cases at most"
            if plan.ab.alpha
            else ""
        )
        end = f"; ends when {plan.ab.max_users:,} users have judged" if plan.ab.max_users else ""
        rules.append(("comparison", f"{_METRICS.get(plan.ab.metric, 'metric')}{margin}{alpha}{end}"))
    rails, limits = plan.guard_rails, []
    if 0 < rails.max_error_rate < 1:
        limits.append(f"{rails.max_error_rate:.1%} of the calls fail")
    if 0 < rails.max_refusal_rate < 1:
        limits.append(f"{rails.max_refusal_rate:.1%} are refused")
    if rails.max_latency_ratio > 0:
        limits.append(f"its p99 latency is {rails.max_latency_ratio:g} times the champion's")
    if rails.max_latency_ms > 0:
        limits.append(f"its p99 latency is {rails.max_latency_ms:,.0f} ms")
    if limits:
        rules.append(("guard-rails", f"rolled back when more than {', or '.join(limits)}"))
    if plan.approve_first:
        rules.append(("approval", "each step and the promotion wait for a person"))
    return rules


def over_time(rollout: ModelRollout) -> Markup:
    """The advantage with its confidence sequence, by users who have judged; empty before the second estimate."""
    kept = [Estimate(each.judged_users, each.difference, each.lower, each.upper) for each in rollout.estimates]
    return confidence_sequence(kept, "users who have judged") if len(kept) > 1 else Markup("")


def facts(rollout: ModelRollout) -> dict[str, Any]:
    """What the page shows of a roll-out itself."""
    return {
        "rollout": rollout,
        "steps": steps_of(rollout),
        "advantage": advantage(rollout),
        "over_time": over_time(rollout),
        "rules": rules_of(rollout),
        "metric": _METRICS.get(rollout.plan.ab.metric, "metric"),
        "orders": {name: ORDERS[name] for name in orders_for(rollout) if may("RolloutService", ORDERS[name].method)},
        "refresh": 0 if rollout.state in _ENDED else 5,
    }


async def listed(view: View) -> Response:
    """All roll-outs, newest first."""
    request = ListRolloutsRequest(page_size=50, page_token=view.next_token)
    found = await view.services.rollouts.ListRollouts(request)
    rollouts: Sequence[ModelRollout] = found.rollouts
    return view.page(
        "rollouts.html",
        rollouts=[(each, step_word(each.steps[each.step]) if each.step < len(each.steps) else "") for each in rollouts],
        older=found.next_page_token,
        after=view.next_token,
    )


async def one(view: View) -> Response:
    """One roll-out, with what was decided about it."""
    name = f"rollouts/{view.parameter('rollout')}"
    found = (await view.services.rollouts.GetRollout(GetRolloutRequest(name=name))).rollout
    asked = view.services.rollouts.ListAuditEntries(ListAuditEntriesRequest(resource=name, page_size=_ENTRIES))
    trail = await section(asked)
    return view.page(
        "rollout.html",
        entries=trail.found.entries if trail.found else (),
        trail_error=trail.error,
        **facts(found),
    )


async def ask(view: View) -> Response:
    """Asks before an order is carried out."""
    order = _order(view)
    return view.page(
        "confirm.html",
        title=order.asks,
        what=order.warns,
        word=order.word,
        back=f"/rollouts/{view.parameter('rollout')}",
        dangerous=order.dangerous,
        with_reason=True,
    )


async def act(view: View) -> Response:
    """Carries out an order."""
    order = _order(view)
    request = order.request(
        request_id=view.form.get("request_id", ""),
        name=f"rollouts/{view.parameter('rollout')}",
        reason=view.form.get("reason", ""),
    )
    call: Callable[..., Awaitable[Any]] = getattr(view.services.rollouts, order.method)
    await call(request, timeout=_ACT_S)
    return view.go(f"/rollouts/{view.parameter('rollout')}", note=order.note)


def _order(view: View) -> Order:
    order = ORDERS.get(view.parameter("order"))
    if order is None:
        raise NotFoundError("This page does not exist.", reason="UNKNOWN_PATH")
    return order


PAGES = (
    Page("GET", "/rollouts", listed),
    Page("GET", "/rollouts/{rollout}", one),
    Page("GET", "/rollouts/{rollout}/{order}", ask),
    Page("POST", "/rollouts/{rollout}/{order}", act),
)
