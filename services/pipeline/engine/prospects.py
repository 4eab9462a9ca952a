"""Whether a comparison that is undecided can still be won, by what its users said so far and the time that it has left.

Asked only while a newer version waits. A comparison that is ended by it keeps the version before, so the chance of a
false promotion does not grow.
"""

from __future__ import annotations

import math
from datetime import datetime
from statistics import NormalDist

from services.pipeline.domain.rollout import Rollout
from services.pipeline.domain.rollout_plan import StepKind
from services.pipeline.engine.group_sequential import LOOKS, bound_at, due_look
from services.pipeline.engine.rollout_decision import Decision, NextStep, difference
from services.pipeline.engine.rollout_figures import RolloutFigures
from services.pipeline.engine.sequential import MIN_UNITS, MeanDifference, normal_mixture

_HARDLY = 0.1
"""Chance of a promotion up to which a comparison is given up for a newer version."""
_BELIEVED = 0.1
"""Share of a comparison's longest time after which its users say how many will judge: before, a night or feedback that
comes late looks like a product without users."""
_NORMAL = NormalDist()
_GOES_ON = Decision(NextStep.STAY)


def superseded(rollout: Rollout, figures: RolloutFigures, now: datetime, newer: str) -> Decision:
    """Whether a comparison ends undecided because `newer` (`models/{model}/versions/{number}`) waits."""
    began = rollout.record.start_time
    if rollout.planned.kind is not StepKind.AB or began is None:
        return _GOES_ON
    minutes, length = (now - began).total_seconds() / 60, rollout.planned.length
    passed = minutes / length.max_minutes
    if minutes < length.min_minutes or passed < _BELIEVED:
        return _GOES_ON
    pair = difference(rollout, figures)
    chance = chance_to_win(rollout, pair, 1 / passed)
    if chance > _HARDLY:
        return _GOES_ON
    users = pair.champion.count + pair.candidate.count
    known = f", by {pair.estimate:+.3f} so far" if min(pair.champion.count, pair.candidate.count) >= MIN_UNITS else ""
    unusable = f", for {figures.unusable}" if figures.unusable else ""
    why = (
        f"{newer} is newer and waits, and {rollout.candidate} will hardly be found better in the time left{known}: "
        f"{users:,} users have judged in {minutes:,.0f} of {length.max_minutes:,.0f} minutes{unusable}, and the chance "
        f"is at most {chance:.0%}. The comparison ends undecided; {rollout.champion} keeps serving."
    )
    facts = {"newer": newer, "chance": f"{chance:.4f}", "minutes": f"{minutes:.1f}", "users": str(users)}
    return Decision(NextStep.ROLL_BACK, why, facts)


def chance_to_win(rollout: Rollout, pair: MeanDifference, grown: float) -> float:
    """An upper bound of the chance that the candidate is promoted, given all until now; 1 while nothing is known.

    What is still to come is drawn from what is believed of the difference now. That gives the chance of being beyond
    the bound at the end; being beyond it at any time before is at most twice as likely, by the reflection principle,
    since the bound falls. So of all comparisons that are given up at a chance, at most that share would have been won.
    Source: predictive power of Spiegelhalter, Freedman and Blackburn, "Monitoring clinical trials: conditional or
    predictive power?", Controlled Clinical Trials 7 (1986).

    Args:
        rollout: in its comparison.
        pair: the metric of both versions, positive where the candidate is better.
        grown: how many times the users of now will have judged at the end of the step's longest time; at least 1.
    """
    comparison, users = rollout.plan.comparison, pair.champion.count + pair.candidate.count
    if not users:
        return 0.0
    if comparison.max_users:
        grown = max(1.0, min(grown, comparison.max_users / users))
    fewest = min(pair.champion.count, pair.candidate.count)
    if fewest * grown < MIN_UNITS:
        return 0.0
    if fewest < MIN_UNITS:
        return 1.0
    if comparison.max_users:
        # The last planned look that the users to come reach.
        share = math.floor(LOOKS * min(1.0, grown * users / comparison.max_users) + 1e-9) / LOOKS
        if due_look(rollout.record.looks, share) is None:
            return 0.0
        bound = bound_at((*rollout.record.looks, share), comparison.alpha)
        grown = max(1.0, share * comparison.max_users / users)
    else:
        bound = normal_mixture(grown * users, comparison.alpha, pair.tightest_at, one_sided=True)
    error = pair.error()
    missing = bound * error / math.sqrt(grown) - comparison.margin - pair.estimate
    spread = error * math.sqrt(1 - 1 / grown)
    if not spread:
        return 0.0 if missing >= 0 else 1.0
    return min(1.0, 2 * _NORMAL.cdf(-missing / spread))
