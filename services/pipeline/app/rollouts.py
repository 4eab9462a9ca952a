"""Start, read and overrule roll-outs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.kit.errors import AbortedError, FailedPreconditionError, TidemillError, not_found
from services.kit.retrying import again_if_aborted
from services.pipeline.app.ports import Begun
from services.pipeline.app.rollout_ports import AuditStore
from services.pipeline.app.rollout_runner import RolloutParts, carry_out, entry_of
from services.pipeline.domain.audit import MESH, AuditEntry
from services.pipeline.domain.rollout import Rollout, RolloutState
from services.pipeline.domain.rollout_plan import RolloutPlan
from services.pipeline.engine.rollout_decision import interval
from services.pipeline.engine.rollout_figures import RolloutFigures

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Overrule:
    """What a person orders: who, and why."""

    actor: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RolloutNow:
    """A roll-out with its figures; `advantage` is the estimate with both ends of its interval, if it is known."""

    rollout: Rollout
    figures: RolloutFigures | None = None
    advantage: tuple[float, float, float] | None = None


class Rollouts:
    """Use cases on roll-outs; `changed` wakes the runner."""

    def __init__(self, parts: RolloutParts, audit: AuditStore, changed: Callable[[], None]) -> None:
        self._parts, self._audit, self._changed = parts, audit, changed

    async def begin(self, cycle: str, model: str, candidate: str, run: str, plan: RolloutPlan) -> Begun:
        """Starts the roll-out of a cycle's version. A version that is being introduced stays so.

        Args:
            cycle: `pipelines/{pipeline}/cycles/{cycle}`.
            model: `models/{model}`.
            candidate: `models/{model}/versions/{number}`, which is in the model's route.
            run: that made it.
            plan: its steps.
        """
        unfinished = await asyncio.to_thread(self._parts.store.unfinished)
        others = [each for each in unfinished if each.model == model and not each.state.final]
        for known in others:
            if known.candidate == candidate:
                return Begun(known.name)
        at_work = next((each.name for each in others if each.state is not RolloutState.PENDING), "")
        now = self._parts.clock.now()
        _, pipeline, _, cycle_id = cycle.split("/")
        why = f"{cycle} made {candidate}."
        draft = Rollout(cycle_id, pipeline, cycle, model, candidate, run, plan, now, now, reason=why)
        entry = entry_of(draft, MESH, "rollout.create", self._parts.clock)
        rollout = await asyncio.to_thread(self._parts.store.create, draft, entry)
        self._changed()
        return Begun(rollout.name, at_work)

    async def get(self, name: str) -> RolloutNow:
        """A roll-out, with its figures while it is at work.

        Raises:
            NotFoundError: there is none.
        """
        rollout = await self._read(name)
        if not rollout.records:
            return RolloutNow(rollout)
        figures = await asyncio.to_thread(self._parts.metrics.figures, rollout)
        return RolloutNow(rollout, figures, interval(rollout, figures))

    async def progress(self, name: str) -> RolloutNow:
        """A roll-out with the counts of its calls, which cost little to read again and again; errors as `get`."""
        rollout = await self._read(name)
        figures = await asyncio.to_thread(self._parts.metrics.calls, rollout) if rollout.records else None
        return RolloutNow(rollout, figures)

    async def page(self, model: str, before: str, limit: int) -> Sequence[Rollout]:
        """Roll-outs of a model (of all if empty) older than the given id, newest first."""
        return await asyncio.to_thread(self._parts.store.page, model, before, limit)

    def audit(self, resource: str, before: str, limit: int) -> Sequence[AuditEntry]:
        """The audit trail about a resource (about all if empty), newest first."""
        return self._audit.page(resource, before, limit)

    async def approve(self, name: str, by: Overrule) -> Rollout:
        """Lets a roll-out take the step that it proposes.

        Raises:
            FailedPreconditionError: it proposes none.
        """

        def approved(rollout: Rollout) -> Rollout:
            if rollout.state is not RolloutState.AWAITING_APPROVAL:
                raise _refused(rollout, "NOT_AWAITING_APPROVAL", "it proposes no step that could be approved")
            now = self._parts.clock.now()
            if rollout.promote_next:
                return rollout.ended(RolloutState.PROMOTED, rollout.reason, now)
            return rollout.stepped(rollout.reason, now)

        return await self._overrule(name, "rollout.approve", by, approved)

    async def roll_back(self, name: str, by: Overrule) -> Rollout:
        """Ends a roll-out and gives all users the previous version; returns when the route is set.

        Raises:
            FailedPreconditionError: the new version was promoted.
        """
        why = by.reason or "A person rolled it back."
        return await self._end_now(name, "rollout.rollback", by, RolloutState.ROLLED_BACK, why)

    async def freeze(self, name: str, by: Overrule) -> Rollout:
        """Holds a roll-out at its step."""

        def frozen(rollout: Rollout) -> Rollout:
            _check_running(rollout)
            return rollout if rollout.frozen else rollout.held(by.reason or "A person holds it at this step.")

        return await self._overrule(name, "rollout.freeze", by, frozen)

    async def resume(self, name: str, by: Overrule) -> Rollout:
        """Resumes a held roll-out."""

        def resumed(rollout: Rollout) -> Rollout:
            _check_running(rollout)
            return rollout.resumed(by.reason or "A person resumed it.") if rollout.frozen else rollout

        return await self._overrule(name, "rollout.resume", by, resumed)

    async def force(self, name: str, by: Overrule) -> Rollout:
        """Promotes the new version now, whatever the figures say."""
        why = by.reason or "A person promoted it, whatever the figures say."
        return await self._end_now(name, "rollout.force", by, RolloutState.PROMOTED, why)

    async def _end_now(self, name: str, action: str, by: Overrule, state: RolloutState, why: str) -> Rollout:
        """Ends a roll-out in a state; does nothing if it has already ended in it."""

        def ended(rollout: Rollout) -> Rollout:
            if rollout.state is state:
                return rollout
            _check_running(rollout)
            return rollout.ended(state, why, self._parts.clock.now())

        rollout = await self._overrule(name, action, by, ended)
        if not rollout.applied:
            # Not left to the runner, which may be waiting for something else.
            await self._carried_out(rollout)
        return await self._read(name)

    async def _overrule(self, name: str, action: str, by: Overrule, change: Callable[[Rollout], Rollout]) -> Rollout:
        """Applies a person's decision to the current roll-out; a change is stored with an audit entry."""

        async def attempt() -> Rollout:
            before = await self._read(name)
            after = change(before)
            if after == before:
                return before
            entry = entry_of(after, by.actor, action, self._parts.clock, reason=by.reason)
            stored = await asyncio.to_thread(self._parts.store.update, after, entry)
            logger.info("%s: %s by %s: %s", name, action, by.actor, entry.reason)
            self._changed()
            return stored

        return await again_if_aborted(attempt)

    async def _carried_out(self, rollout: Rollout) -> None:
        try:
            await carry_out(rollout, self._parts)
        except AbortedError:
            pass  # the runner did it at the same time
        except TidemillError as error:
            logger.warning("%s is carried out later: %s", rollout.name, error.message)

    async def _read(self, name: str) -> Rollout:
        rollout = await asyncio.to_thread(self._parts.store.get, name)
        if rollout is None:
            raise not_found("rollout", name, "`tidemill rollout list` lists them.")
        return rollout


def _check_running(rollout: Rollout) -> None:
    if rollout.state is RolloutState.PROMOTED:
        model = rollout.model.removeprefix("models/")
        raise _refused(
            rollout, "ROLLOUT_ENDED", f"{rollout.candidate} was promoted; `tidemill route rollback {model}` goes back"
        )
    if rollout.state is RolloutState.ROLLED_BACK:
        raise _refused(rollout, "ROLLOUT_ENDED", "it was rolled back; the next cycle starts another one")


def _refused(rollout: Rollout, reason: str, why: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{rollout.name} is {rollout.state.value.replace('_', ' ')}: {why}.",
        reason=reason,
        metadata={"rollout": rollout.name},
    )
