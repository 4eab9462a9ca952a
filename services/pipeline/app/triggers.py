"""Starts cycles by themselves: looks at every pipeline's triggers, decides, and starts each cycle once.

An order to start a cycle is stored before the cycle is created, with the request id that creates it. After a crash in
between the order is carried out again, and the same request is the same cycle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from services.kit.clock import Clock
from services.kit.errors import TidemillError, is_retryable, not_found
from services.kit.ids import new_id
from services.kit.schedules import check_schedule, due_after, last_due, zone_of
from services.pipeline.app.capture import Captures
from services.pipeline.app.drift import DriftWatch
from services.pipeline.app.ports import CycleStore
from services.pipeline.app.rollout_ports import RolloutStore
from services.pipeline.app.trigger_ports import BudgetGauges, Firing, RecordCounts, StartCycle, Trigger, TriggerStore
from services.pipeline.domain.audit import INSIDE, entry
from services.pipeline.domain.cycle import Cycle, CycleState, PipelineSpec
from services.pipeline.domain.triggers import DAY, Alert, Decision, Facts, Triggers, budgets_used, decide

logger = logging.getLogger(__name__)

_INVALID = "TRIGGER_INVALID"
_FIRINGS_SHOWN = 10
_PAGE = 100


@dataclass(frozen=True, slots=True)
class TriggerView:
    """The triggers of a pipeline with their current decision."""

    trigger: Trigger
    decision: Decision
    firings: Sequence[Firing]
    next_schedule: datetime | None


def check_triggers(spec: PipelineSpec) -> None:
    """Refuses triggers that can never work.

    Raises:
        InvalidArgumentError: the schedule or the time zone is not valid; names the field.
    """
    if (triggers := spec.triggers) is not None:
        zone_of(triggers.time_zone, "spec.triggers.time_zone", _INVALID)
        if triggers.schedule:
            check_schedule(triggers.schedule, "spec.triggers.schedule", _INVALID)


class PipelineTriggers:
    """Use cases on triggers; `step` is called again and again by one task."""

    def __init__(
        self,
        store: TriggerStore,
        cycles: CycleStore,
        captures: Captures,
        records: RecordCounts,
        start: StartCycle,
        drift: DriftWatch,
        rollouts: RolloutStore,
        budgets: BudgetGauges,
        clock: Clock,
    ) -> None:
        self._drift, self._rollouts, self._budgets = drift, rollouts, budgets
        self._store, self._cycles, self._captures = store, cycles, captures
        self._records, self._start, self._clock = records, start, clock

    async def put(self, spec: PipelineSpec) -> TriggerView:
        """Sets the triggers of a pipeline, which has some.

        Raises:
            InvalidArgumentError: they can never work.
        """
        check_triggers(spec)
        trigger = await asyncio.to_thread(self._store.put, spec, self._clock.now())
        assert trigger is not None
        return await self._view(trigger)

    async def get(self, pipeline: str) -> TriggerView:
        """The triggers of a pipeline, and why they do or do not start a cycle now.

        Raises:
            NotFoundError: it has none.
        """
        trigger = await asyncio.to_thread(self._store.get, pipeline)
        if trigger is None:
            hint = "Its file needs `triggers`; `tidemill triggers put FILE` or a cycle sets them."
            raise not_found("trigger", f"pipelines/{pipeline}", hint)
        return await self._view(trigger)

    async def page(self, after: str, limit: int) -> Sequence[TriggerView]:
        """Triggers by the name of the pipeline."""
        return [await self._view(item) for item in await asyncio.to_thread(self._store.page, after, limit)]

    async def pause(self, pipeline: str, paused: bool, reason: str = "", actor: str = INSIDE) -> TriggerView:
        """Pauses or resumes; `actor` is who does, for the audit trail.

        Raises:
            NotFoundError: the pipeline has no triggers.
        """
        await self.get(pipeline)
        action, why = ("pause", "paused") if paused else ("resume", "resumed")
        by = entry(
            self._clock.now(), actor, f"trigger.{action}", f"pipelines/{pipeline}", reason or f"A person {why} it."
        )
        await asyncio.to_thread(self._store.pause, pipeline, paused, reason, by)
        logger.info("the triggers of %s are %s", pipeline, "paused" if paused else "resumed")
        return await self.get(pipeline)

    async def report(self, alerts: Sequence[tuple[str, Alert]]) -> int:
        """Takes alerts by the name of their pipeline; returns how many of them a trigger names."""
        taken = 0
        for pipeline, alert in alerts:
            trigger = await asyncio.to_thread(self._store.get, pipeline)
            if trigger is None or alert.name not in _of(trigger).alerts:
                continue
            await asyncio.to_thread(self._store.report, pipeline, alert, self._clock.now())
            taken += 1
        return taken

    async def step(self) -> None:
        """Carries out orders that are pending, then looks at every pipeline once."""
        for firing in await asyncio.to_thread(self._store.pending):
            await self._carry_out(firing)
        after = ""
        while page := await asyncio.to_thread(self._store.page, after, _PAGE):
            for trigger in page:
                await self._look_at(trigger)
            after = page[-1].pipeline

    async def _look_at(self, trigger: Trigger) -> None:
        facts, cursors = await self._facts(trigger)
        triggers, now = _of(trigger), facts.now
        for budget, share in budgets_used(triggers, facts).items():
            self._budgets.show(trigger.pipeline, budget, share)
        decision = decide(triggers, facts, zone_of(triggers.time_zone))
        met_since = (facts.met_since or now) if decision.counted else None
        if met_since != trigger.met_since or cursors != trigger.cursors:
            await asyncio.to_thread(self._store.note, trigger.pipeline, met_since, cursors)
        if not decision.fires:
            return
        firing = Firing(trigger.pipeline, f"trigger-{new_id()}", now, decision.reasons, trigger.spec)
        if await asyncio.to_thread(self._store.fire, firing, now):
            await self._carry_out(firing)

    async def _carry_out(self, firing: Firing) -> None:
        running = await asyncio.to_thread(self._cycles.at_work, firing.pipeline)
        if running is not None and running.request_id != firing.request_id:
            # What it began with is older than the order.
            return
        try:
            cycle = await self._start(firing.spec, firing.request_id, firing.reasons)
        except TidemillError as error:
            if is_retryable(error):
                logger.warning("a cycle of %s is due and waits: %s", firing.pipeline, error.message)
                return
            # Someone started a cycle with another spec at the same time, or the file can no longer be run.
            logger.error("the triggers of %s could not start a cycle: %s", firing.pipeline, error.message)
            await asyncio.to_thread(self._store.refused, firing, error.message, self._clock.now())
            return
        await asyncio.to_thread(self._store.started, firing, cycle.name, self._clock.now())
        logger.info("%s was started by its triggers: %s", cycle.name, " ".join(firing.reasons))

    async def _view(self, trigger: Trigger) -> TriggerView:
        facts, cursors = await self._facts(trigger)
        if cursors != trigger.cursors:
            # What is shown is what will be decided by.
            await asyncio.to_thread(self._store.note, trigger.pipeline, trigger.met_since, cursors)
        triggers = _of(trigger)
        decision = decide(triggers, facts, zone_of(triggers.time_zone))
        firings = await asyncio.to_thread(self._store.firings, trigger.pipeline, _FIRINGS_SHOWN)
        return TriggerView(trigger, decision, firings, facts.next_schedule)

    async def _facts(self, trigger: Trigger) -> tuple[Facts, dict[str, int]]:
        """The current facts, and for each cycle that records are counted from the arrival of its newest record."""
        triggers, now = _of(trigger), self._clock.now()
        zone = zone_of(triggers.time_zone)
        newest = await asyncio.to_thread(self._cycles.page, trigger.pipeline, "", 1)
        learnt = await asyncio.to_thread(self._cycles.learnt, trigger.pipeline)
        new_records, cursors = await self._new_records(trigger, learnt)
        # What came later the newest cycle may not have seen.
        since = None if learnt is None else learnt.stage("collect").start_time
        corrections = 0
        if triggers.corrections:
            corrections = await asyncio.to_thread(self._captures.count_corrections, trigger.spec, since)
        missed = next_schedule = None
        if triggers.schedule:
            missed = last_due(triggers.schedule, trigger.scheduled_until, now, zone)
            next_schedule = due_after(triggers.schedule, now, zone)
        train_minutes = 0.0
        if triggers.max_train_minutes:
            at_work = await asyncio.to_thread(self._cycles.changed, trigger.pipeline, now - DAY)
            train_minutes = sum(_train_minutes(item, now) for item in at_work)
        last = newest[0] if newest else None
        running = last.name if last is not None and not last.state.final else ""
        fired = await asyncio.to_thread(self._store.firings, trigger.pipeline, triggers.max_cycles_per_day + 1)
        if fired and not (fired[0].cycle or fired[0].error):
            running = "A cycle that was ordered"
        facts = Facts(
            now=now,
            new_records=new_records,
            corrections=corrections,
            missed=missed,
            next_schedule=next_schedule,
            met_since=trigger.met_since,
            fired=[firing.fire_time for firing in fired],
            train_minutes=train_minutes,
            running=running,
            stopped=_stopped(last, fired[0] if fired else None),
            paused=trigger.paused,
            pause_reason=trigger.pause_reason,
            drift=await asyncio.to_thread(self._drift.states, trigger.spec, learnt),
            rollout=await self._rollout(trigger.spec),
            alerts=await asyncio.to_thread(self._store.alerts, trigger.pipeline, since) if triggers.alerts else (),
        )
        return facts, cursors

    async def _rollout(self, spec: PipelineSpec) -> str:
        unfinished = await asyncio.to_thread(self._rollouts.unfinished)
        ours = [rollout for rollout in unfinished if rollout.model == spec.model and not rollout.state.final]
        # The oldest is at work, the others wait for it.
        return ours[0].summary if ours else ""

    async def _new_records(self, trigger: Trigger, learnt: Cycle | None) -> tuple[int | None, dict[str, int]]:
        if not _of(trigger).new_records:
            return 0, {}
        known = trigger.cursors
        wanted, tenants = trigger.spec.source_names, trigger.spec.dataset.get("tenants", [])
        try:
            if learnt is not None and learnt.name not in known:
                # First seen after its data set was built: what is there now counts as learnt.
                _, newest = await self._records.count(wanted, 0, tenants)
                known = {learnt.name: newest, **known}
            after = 0 if learnt is None else known[learnt.name]
            count, _ = await self._records.count(wanted, after, tenants)
        except TidemillError as error:
            if not is_retryable(error):
                raise
            return None, dict(trigger.cursors)
        # If this cycle fails, records are counted from the previous one again.
        return count, dict(list(known.items())[:2])


def _of(trigger: Trigger) -> Triggers:
    assert trigger.spec.triggers is not None
    return trigger.spec.triggers


def _stopped(last: Cycle | None, fired: Firing | None) -> tuple[str, datetime] | None:
    """What became of the last attempt, and when, if it failed or was cancelled."""
    if fired is not None and fired.error and (last is None or last.create_time < fired.fire_time):
        return f"A cycle could not be started: {fired.error}", fired.fire_time
    words = {CycleState.FAILED: "failed", CycleState.CANCELLED: "was cancelled"}
    if last is None or last.state not in words:
        return None
    return f"{last.name} {words[last.state]}", last.update_time


def _train_minutes(cycle: Cycle, now: datetime) -> float:
    """Minutes of training of a cycle in the last 24 hours; what was reused took none."""
    stage = cycle.stage("train")
    if stage.start_time is None or stage.reused:
        return 0.0
    begun, ended = max(stage.start_time, now - DAY), stage.end_time or now
    return max(0.0, (ended - begun).total_seconds() / 60)
