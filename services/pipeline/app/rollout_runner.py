"""Runs roll-outs: looks at each that is at work, decides by its figures, and carries decisions out.

A decision is stored with its audit entry before the route is changed. A process that is killed in between finds the
decision, and changes the route; one that is killed after the change finds the route as it should be.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from services.kit.clock import Clock
from services.kit.errors import AbortedError, TidemillError, is_retryable
from services.pipeline.app.rollout_ports import Registry, RolloutMetrics, RolloutStore, Routing
from services.pipeline.app.rollout_routes import number_of, set_for, what_changed
from services.pipeline.domain.audit import MESH, AuditEntry, entry
from services.pipeline.domain.rollout import Estimate, Rollout, RolloutState
from services.pipeline.domain.rollout_plan import StepKind
from services.pipeline.engine.prospects import superseded
from services.pipeline.engine.rollout_decision import Decision, NextStep, decide, guard, interval
from services.pipeline.engine.rollout_figures import RolloutFigures

logger = logging.getLogger(__name__)

_REST = 10
"""A look that joins calls with feedback is followed by a pause of this many times its own length."""


@dataclass(frozen=True, slots=True)
class RolloutParts:
    """What runner and use cases share."""

    store: RolloutStore
    metrics: RolloutMetrics
    routing: Routing
    registry: Registry
    clock: Clock


@dataclass(frozen=True, slots=True)
class _Look:
    """Figures that are being computed for a step, and since when (monotonic)."""

    step: int
    began: float
    task: asyncio.Task[RolloutFigures]


class RolloutRunner:
    """Belongs to one event loop; `step` looks at all roll-outs once."""

    def __init__(self, parts: RolloutParts, patience_s: float = 1.0) -> None:
        """`patience_s`: how long guard-rails wait for the figures of a comparison, which more calls make slower."""
        self._parts = parts
        self._patience_s = patience_s
        self._not_before: dict[str, float] = {}
        self._looks: dict[str, _Look] = {}
        self._waiting: dict[str, str] = {}

    async def step(self) -> bool:
        """Looks at every roll-out that has not ended; returns whether one of them has changed."""
        found = await asyncio.to_thread(self._parts.store.unfinished)
        by_model: dict[str, list[Rollout]] = defaultdict(list)
        for rollout in found:
            by_model[rollout.model].append(rollout)
        return any(await asyncio.gather(*(self._turn(each) for each in by_model.values())))

    async def _turn(self, rollouts: Sequence[Rollout]) -> bool:
        """Advances the roll-outs of one model; an error does not affect other models."""
        model = rollouts[0].model
        try:
            changed = await self._look_at(rollouts)
        except AbortedError:
            return True  # a person was faster; what they did is looked at next
        except TidemillError as error:
            if self._waiting.get(model) != error.reason:
                logger.warning("the roll-out of %s waits: %s", model, error.message)
            self._waiting[model] = error.reason
            return False
        except Exception:
            logger.exception("the roll-out of %s failed; it is tried again", model)
            return False
        self._waiting.pop(model, None)
        return changed

    async def _look_at(self, rollouts: Sequence[Rollout]) -> bool:
        pending = [each for each in rollouts if each.state is RolloutState.PENDING]
        for older in pending[:-1]:
            why = f"{older.candidate} was never introduced: {pending[-1].candidate} is newer, and waits too."
            decision = Decision(NextStep.ROLL_BACK, why)
            await self._end(older, RolloutState.ROLLED_BACK, decision, "rollout.supersede")
        if ended := [each for each in rollouts if each.state.final]:
            return all([await carry_out(each, self._parts) for each in ended])
        if at_work := [each for each in rollouts if each.state is not RolloutState.PENDING]:
            if not pending:
                return await self._look(at_work[0])
            await self._wait(pending[-1], at_work[0])
            return await self._look(at_work[0], pending[-1].candidate)
        await self._begin(pending[-1])
        return True

    async def _wait(self, pending: Rollout, at_work: Rollout) -> None:
        why = f"{pending.cycle} made {pending.candidate}, which waits: {at_work.summary}."
        if pending.reason != why:
            await self._store(replace(pending, reason=why))

    async def _begin(self, rollout: Rollout) -> None:
        found = await self._parts.routing.route(rollout.model)
        if not found.serving or found.serving == number_of(rollout.candidate):
            why = f"No other version of {rollout.model} serves, so {rollout.candidate} serves at once."
            await self._end(rollout, RolloutState.PROMOTED, Decision(NextStep.ADVANCE, why))
            return
        begun = rollout.begun(f"{rollout.model}/versions/{found.serving}")
        await self._store(begun, "rollout.begin", {"step": begun.planned.kind.value})

    async def _look(self, rollout: Rollout, newer: str = "") -> bool:
        """Advances a roll-out that is at work; `newer` is the version that waits for it, if one does."""
        if not rollout.applied:
            return await carry_out(rollout, self._parts)
        found = await self._parts.routing.route(rollout.model)
        why = what_changed(rollout, found)
        if why and found.serving == number_of(rollout.candidate):
            await self._end(rollout, RolloutState.PROMOTED, Decision(NextStep.ADVANCE, why))
            return True
        if why and (found.serving != number_of(rollout.champion) or number_of(rollout.candidate) not in found.versions):
            await self._end(rollout, RolloutState.ROLLED_BACK, Decision(NextStep.ROLL_BACK, why))
            return True
        if why and not rollout.frozen:
            await self._store(rollout.held(f"{why} `tidemill rollout resume` sets them as planned."), "rollout.freeze")
            return True
        if not why and found.etag not in rollout.record.etags:
            rollout = await self._store(rollout.routed(found.etag, self._parts.clock.now()))
        decision, figures = await self._decision(rollout)
        # Before a decision by it, so that the decision's own figures are the last ones.
        if figures is not None and (more := self._estimated(rollout, figures)) is not None:
            rollout = await self._store(more)
        if decision.look is not None:
            rollout = rollout.looked(decision.look)
        elif newer and decision.next_step is NextStep.STAY and figures is not None:
            given_up = superseded(rollout, figures, self._parts.clock.now(), newer)
            if given_up.next_step is NextStep.ROLL_BACK:
                await self._end(rollout, RolloutState.ROLLED_BACK, given_up, "rollout.supersede")
                return True
        return await self._follow(rollout, decision)

    async def _decision(self, rollout: Rollout) -> tuple[Decision, RolloutFigures | None]:
        """What follows from the figures, and those of the whole step where they were read."""
        alarm = guard(rollout, await asyncio.to_thread(self._parts.metrics.calls, rollout))
        held = rollout.frozen or rollout.state is RolloutState.AWAITING_APPROVAL
        if alarm.next_step is not NextStep.STAY or held:
            return alarm, None
        figures = await self._figures(rollout)
        if figures is None:
            return alarm, None
        return decide(rollout, figures, self._parts.clock.now()), figures

    def _estimated(self, rollout: Rollout, figures: RolloutFigures) -> Rollout | None:
        """The roll-out with what a comparison's figures say now; None if they say hardly more than before."""
        found = interval(rollout, figures) if rollout.planned.kind is StepKind.AB else None
        if found is None:
            return None
        users = figures.champion.judged.count + figures.candidate.judged.count
        return rollout.estimated(Estimate(self._parts.clock.now(), users, *found))

    async def _figures(self, rollout: Rollout) -> RolloutFigures | None:
        """All figures of the current step, or None while they are computed: guard-rails do not wait for them."""
        look = self._looks.get(rollout.name)
        if look is None:
            if self._parts.clock.monotonic() < self._not_before.get(rollout.name, 0.0):
                return None
            compute = asyncio.to_thread(self._parts.metrics.figures, rollout)
            look = _Look(rollout.step, self._parts.clock.monotonic(), asyncio.create_task(compute))
            self._looks[rollout.name] = look
        done, _ = await asyncio.wait({look.task}, timeout=self._patience_s)
        if not done:
            return None
        del self._looks[rollout.name]
        ended = self._parts.clock.monotonic()
        self._not_before[rollout.name] = ended + _REST * (ended - look.began)
        return look.task.result() if look.step == rollout.step else None

    async def _follow(self, rollout: Rollout, decision: Decision) -> bool:
        if decision.next_step is NextStep.STAY:
            if decision.look is not None:
                await self._store(rollout)
            return False
        now = self._parts.clock.now()
        if decision.next_step is NextStep.ROLL_BACK:
            await self._end(rollout, RolloutState.ROLLED_BACK, decision)
        elif rollout.plan.approve_first:
            await self._store(rollout.proposed(decision.reason), "rollout.propose", decision.facts)
        elif rollout.is_last_step:
            await self._end(rollout, RolloutState.PROMOTED, decision)
        else:
            await self._store(rollout.stepped(decision.reason, now), "rollout.step", decision.facts)
        return True

    async def _end(self, rollout: Rollout, state: RolloutState, decision: Decision, action: str = "") -> None:
        ended = rollout.ended(state, decision.reason, self._parts.clock.now())
        usual = "rollout.promote" if state is RolloutState.PROMOTED else "rollout.rollback"
        await self._store(ended, action or usual, decision.facts)
        self._not_before.pop(rollout.name, None)
        if (look := self._looks.pop(rollout.name, None)) is not None:
            look.task.cancel()

    async def _store(self, rollout: Rollout, action: str = "", facts: Mapping[str, str] | None = None) -> Rollout:
        entry = entry_of(rollout, MESH, action, self._parts.clock, facts) if action else None
        if entry is not None:
            logger.info("%s: %s: %s", rollout.name, action, entry.reason)
        return await asyncio.to_thread(self._parts.store.update, rollout, entry)


async def carry_out(rollout: Rollout, parts: RolloutParts) -> bool:
    """Brings the route to what a stored decision asks for, and stores that it is; a repeat changes nothing.

    A route that inference refuses for good ends the roll-out: its version was deleted, or cannot be loaded.
    """
    try:
        etag = await set_for(rollout, parts.routing)
        if rollout.state is RolloutState.PROMOTED and rollout.run:
            await parts.registry.promote(rollout.run, f"{rollout.rollout_id}-promote")
    except TidemillError as error:
        if is_retryable(error):
            raise
        if rollout.state.final:
            logger.error("the route of %s stays as it is: %s", rollout.model, error.message)
            etag = ""
        else:
            why = f"The route could not be set: {error.message}"
            ended = rollout.ended(RolloutState.ROLLED_BACK, why, parts.clock.now())
            await asyncio.to_thread(parts.store.update, ended, entry_of(ended, MESH, "rollout.rollback", parts.clock))
            return True
    if rollout.state.final:
        # Before it counts as carried out: a process that is killed in between does it again.
        await asyncio.to_thread(parts.metrics.forget, rollout)
    await asyncio.to_thread(parts.store.update, rollout.routed(etag, parts.clock.now()))
    return True


def entry_of(
    rollout: Rollout, actor: str, action: str, clock: Clock, facts: Mapping[str, str] | None = None, reason: str = ""
) -> AuditEntry:
    """The audit entry of what made a roll-out what it is."""
    known = {"model": rollout.model, "candidate": rollout.candidate, "champion": rollout.champion}
    known |= {"state": rollout.state.value, "step": str(rollout.step)}
    return entry(clock.now(), actor, action, rollout.name, reason or rollout.reason, {**known, **(facts or {})})
