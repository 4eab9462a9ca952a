"""Decides how a roll-out continues, by its plan and its figures; each decision comes with its reason in a sentence.

Guard-rails and the comparison may be looked at after every answer: their bounds hold at all looks at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from services.pipeline.domain.rollout import Rollout
from services.pipeline.domain.rollout_plan import GuardRails, Metric, StepKind
from services.pipeline.engine.group_sequential import bound_at, due_look
from services.pipeline.engine.rollout_figures import CallCounts, RolloutFigures
from services.pipeline.engine.sequential import MIN_UNITS, MeanDifference, RateGuard, ratio_mismatch

_GUARD_ALPHA = 0.01
"""Chance that a guard-rail ends the roll-out of a version that is within its limit."""
_MISMATCH_ALPHA = 0.001
"""Chance that arms which are fed as planned are taken for wrongly fed."""
_MIN_LATENCIES = 200
"""Answers of the serving version before its 99th percentile is a limit."""
_MIN_LIMIT_MS = 50.0
"""Least limit that follows from the serving version: of shorter times the machine's noise is a large part."""
_SLOW_SHARE = 0.01
_UNITS = {
    Metric.ACCEPTED: "share of accepted answers",
    Metric.RATING: "rating",
    Metric.LATENCY: "latency in ms",
    Metric.JUDGED: "rating by the judge",
}


class NextStep(Enum):
    """How a roll-out continues."""

    STAY = "stay"
    ADVANCE = "advance"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True, slots=True)
class Decision:
    """How it continues, why, and the figures behind it.

    `look` is the planned look at which it was decided, to be recorded: a look counts once.
    """

    next_step: NextStep
    reason: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    look: float | None = None


_STAY = Decision(NextStep.STAY)


def difference(rollout: Rollout, figures: RolloutFigures) -> MeanDifference:
    """Of the metric, positive where the candidate is better."""
    pair = MeanDifference(figures.champion.judged, figures.candidate.judged)
    if rollout.plan.comparison.metric is Metric.LATENCY:
        return MeanDifference(pair.candidate, pair.champion)
    return pair


def decide(rollout: Rollout, figures: RolloutFigures, now: datetime) -> Decision:
    """How a roll-out that runs continues."""
    alarm = guard(rollout, figures)
    if alarm.next_step is not NextStep.STAY:
        return alarm
    began = rollout.record.start_time
    if began is None:
        return _STAY
    minutes = (now - began).total_seconds() / 60
    length, kind = rollout.planned.length, rollout.planned.kind
    calls = figures.candidate.step.calls
    enough = minutes >= length.min_minutes and calls >= length.min_answers
    compared = _STAY if kind is StepKind.SHADOW else _compared(rollout, figures, may_promote=enough)
    if compared.next_step is not NextStep.STAY or compared.look is not None:
        return compared
    facts = {"minutes": f"{minutes:.1f}", "candidate_calls": str(calls)}
    if enough and kind is not StepKind.AB:
        why = f"{rollout.candidate} gave {calls:,} answers {_in_step(rollout)} within all limits."
        return Decision(NextStep.ADVANCE, why, facts)
    if minutes >= length.max_minutes:
        unusable = f", for {figures.unusable}" if figures.unusable else ""
        why = (
            f"After {minutes:,.0f} minutes the comparison is undecided{unusable}"
            if kind is StepKind.AB
            else _too_few(rollout, calls)
        )
        return Decision(NextStep.ROLL_BACK, f"{why}; {rollout.champion} keeps serving.", facts)
    return _STAY


def guard(rollout: Rollout, figures: RolloutFigures) -> Decision:
    """Whether a guard-rail, or a wrong division of the users, ends the roll-out."""
    counts, rails = figures.candidate.whole, rollout.plan.guard_rails
    for name, limit, hits, what in (
        ("max_error_rate", rails.max_error_rate, counts.errors, "failed"),
        ("max_refusal_rate", rails.max_refusal_rate, counts.refusals, "were refused or answered with nothing"),
    ):
        if 0 < limit < 1 and counts.calls and RateGuard(limit).is_exceeded(hits, counts.calls, _GUARD_ALPHA):
            why = (
                f"{hits:,} of {counts.calls:,} calls of {rollout.candidate} {what}; the guard-rail {name} allows "
                f"{limit:.1%}."
            )
            return Decision(
                NextStep.ROLL_BACK, why, {"guard_rail": name, "hits": str(hits), "calls": str(counts.calls)}
            )
    limit_ms, name = _latency_limit(rails, figures.champion.whole)
    slow = counts.slower_than(limit_ms) if limit_ms else 0
    if slow and RateGuard(_SLOW_SHARE).is_exceeded(slow, counts.answered, _GUARD_ALPHA):
        why = (
            f"{slow:,} of {counts.answered:,} answers of {rollout.candidate} took more than {limit_ms:,.0f} ms, which "
            f"the guard-rail {name} allows for one of a hundred."
        )
        return Decision(NextStep.ROLL_BACK, why, {"guard_rail": name, "limit_ms": f"{limit_ms:.1f}", "slow": str(slow)})
    return _mismatch(rollout, figures)


def _latency_limit(rails: GuardRails, champion: CallCounts) -> tuple[float, str]:
    """The strictest limit in milliseconds, 0 if none holds, and the guard-rail that it comes from."""
    limits = []
    if rails.max_latency_ms:
        limits.append((rails.max_latency_ms, "max_latency_ms"))
    if rails.max_latency_ratio and champion.answered >= _MIN_LATENCIES:
        limit_ms = max(rails.max_latency_ratio * champion.p99_ms(), _MIN_LIMIT_MS)
        limits.append((limit_ms, "max_latency_ratio"))
    return min(limits, default=(0.0, ""))


def _mismatch(rollout: Rollout, figures: RolloutFigures) -> Decision:
    share = rollout.planned.share
    seen = {"champion": figures.champion.users, "candidate": figures.candidate.users}
    total = sum(seen.values())
    if not share or not total:
        return _STAY
    if ratio_mismatch(seen, {"champion": 1 - share, "candidate": share}) >= _MISMATCH_ALPHA:
        return _STAY
    why = (
        f"{seen['candidate']:,} of {total:,} users got answers of {rollout.candidate}, where {share:.1%} were to: the "
        "users are not divided as planned (sample ratio mismatch), so the comparison cannot be trusted."
    )
    return Decision(
        NextStep.ROLL_BACK, why, {"sample_ratio": f"{seen['candidate'] / total:.4f}", "share": f"{share:.4f}"}
    )


def _compared(rollout: Rollout, figures: RolloutFigures, *, may_promote: bool) -> Decision:
    """What the metric says: at any step with users that the candidate is worse, in the comparison that it is better."""
    comparison = rollout.plan.comparison
    steps = sum(step.kind is not StepKind.SHADOW for step in rollout.plan.steps)
    pair = difference(rollout, figures)
    # The chance of one wrong roll-back is divided among the steps; a promotion is decided in one of them only.
    upper, lower = pair.upper(comparison.alpha / steps), pair.lower(comparison.alpha)
    facts = _facts(figures, pair, comparison.alpha) | {
        "metric": comparison.metric.value,
        "margin": f"{comparison.margin:g}",
    }
    if upper < -comparison.margin:
        bound = f"at most {upper:+.3f} with {1 - comparison.alpha / steps:.1%} certainty"
        why = f"{rollout.candidate} is worse than {rollout.champion}: {_sentence(rollout, figures, pair, bound)}"
        return Decision(NextStep.ROLL_BACK, why, facts)
    if not may_promote or rollout.planned.kind is not StepKind.AB:
        return _STAY
    if comparison.max_users:
        return _at_planned_look(rollout, figures, pair, facts)
    if lower > -comparison.margin:
        better = "better than" if lower > 0 else "not worse by the margin than"
        bound = f"at least {lower:+.3f} with {1 - comparison.alpha:.1%} certainty"
        why = f"{rollout.candidate} is {better} {rollout.champion}: {_sentence(rollout, figures, pair, bound)}"
        return Decision(NextStep.ADVANCE, why, facts)
    return _STAY


def _at_planned_look(
    rollout: Rollout, figures: RolloutFigures, pair: MeanDifference, facts: Mapping[str, str]
) -> Decision:
    """What the metric says at a planned look of a comparison whose end is known; between looks it decides nothing."""
    comparison, users = rollout.plan.comparison, pair.champion.count + pair.candidate.count
    look = due_look(rollout.record.looks, users / comparison.max_users)
    if look is None:
        return _STAY
    if min(pair.champion.count, pair.candidate.count) < MIN_UNITS:
        if look < 1:
            return _STAY
        why = f"{users:,} users have judged, the maximum, but fewer than {MIN_UNITS} of them one of the versions"
        return Decision(NextStep.ROLL_BACK, f"{why}; {rollout.champion} keeps serving.", facts, look)
    z, bound = pair.z(comparison.margin), bound_at((*rollout.record.looks, look), comparison.alpha)
    facts = {**facts, "look": f"{look:.4f}", "z": f"{z:.3f}", "bound": f"{bound:.3f}"}
    limit = f"{z:.2f} standard errors, where {bound:.2f} decide after {users:,} of {comparison.max_users:,} users"
    if z > bound:
        better = "not worse by the margin than" if comparison.margin else "better than"
        why = f"{rollout.candidate} is {better} {rollout.champion}: {_sentence(rollout, figures, pair, limit)}"
        return Decision(NextStep.ADVANCE, why, facts, look)
    if look < 1:
        return Decision(NextStep.STAY, facts=facts, look=look)
    why = f"The comparison has ended undecided: {_sentence(rollout, figures, pair, limit)}"
    return Decision(NextStep.ROLL_BACK, f"{why.rstrip('.')}; {rollout.champion} keeps serving.", facts, look)


def _facts(figures: RolloutFigures, pair: MeanDifference, alpha: float) -> dict[str, str]:
    low, high = pair.interval(alpha)
    if math.isinf(low):
        return {}
    counts = {"champion_users": str(figures.champion.judged.count)}
    counts |= {"candidate_users": str(figures.candidate.judged.count)}
    return {"difference": f"{pair.estimate:.6g}", "lower": f"{low:.6g}", "upper": f"{high:.6g}", **counts}


def _sentence(rollout: Rollout, figures: RolloutFigures, pair: MeanDifference, bound: str) -> str:
    """The figures, with the bound that decided."""
    comparison = rollout.plan.comparison
    ours, theirs = figures.candidate.judged, figures.champion.judged
    allowed = f"; {-comparison.margin:+.3f} is allowed" if comparison.margin else ""
    return (
        f"{_UNITS[comparison.metric]} {ours.mean:.3f} of {ours.count:,} users against {theirs.mean:.3f} of "
        f"{theirs.count:,}; the advantage is {pair.estimate:+.3f}, {bound}{allowed}."
    )


def _in_step(rollout: Rollout) -> str:
    share = rollout.planned.share
    return f"to {share:.1%} of the users" if share else "to copies of calls"


def _too_few(rollout: Rollout, calls: int) -> str:
    wanted = rollout.planned.length.min_answers
    return f"{rollout.candidate} gave {calls:,} answers {_in_step(rollout)} in the time allowed, not {wanted:,}"


def interval(rollout: Rollout, figures: RolloutFigures) -> tuple[float, float, float] | None:
    """The advantage of the candidate with the ends of its confidence sequence; None while too few users have judged."""
    pair = difference(rollout, figures)
    if min(pair.champion.count, pair.candidate.count) < MIN_UNITS:
        return None
    low, high = pair.interval(rollout.plan.comparison.alpha)
    return pair.estimate, low, high
