"""When a pipeline starts a cycle by itself: what demands one, and what holds it back. The caller brings the facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta, tzinfo

from services.pipeline.domain.drift import DriftLook, DriftRules, DriftState, Signal

DEFAULT_DEBOUNCE_MINUTES = 10.0
DEFAULT_CYCLES_PER_DAY = 4
DAY = timedelta(hours=24)
"""Budgets are over the last 24 hours, so that no midnight doubles them."""
PAUSE_AFTER_STOP = timedelta(hours=1)
"""What made a cycle fail would make the next one fail, too, and who cancelled one wants no other at once."""


@dataclass(frozen=True, slots=True)
class QuietHours:
    """Hours of a day, `HH:MM`; `end` is excluded, and before `start` where they go over midnight."""

    start: str
    end: str

    def contains(self, moment: time) -> bool:
        """Whether a time of day is in them; equal ends are a whole day."""
        start, end = time.fromisoformat(self.start), time.fromisoformat(self.end)
        if start < end:
            return start <= moment < end
        return moment >= start or moment < end


@dataclass(frozen=True, slots=True)
class Triggers:
    """Conditions, of which any is enough (0 and empty are none), and what holds cycles back."""

    new_records: int = 0
    corrections: int = 0
    schedule: str = ""
    time_zone: str = "UTC"
    debounce_minutes: float = DEFAULT_DEBOUNCE_MINUTES
    max_cycles_per_day: int = DEFAULT_CYCLES_PER_DAY
    max_train_minutes: float = 0.0
    quiet_hours: tuple[QuietHours, ...] = ()
    drift: DriftRules | None = None
    during_rollouts: bool = False
    alerts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert about a pipeline, as Alertmanager reports it; `answered` if a cycle has begun since it was reported."""

    name: str
    fingerprint: str
    start_time: datetime
    summary: str = ""
    resolved: bool = False
    answered: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at one moment.

    `new_records` is None while cleaning does not answer. `missed` is the last scheduled time that no cycle has answered
    yet, None if there is none. `met_since` is when a count was first found at its threshold. `fired` are the times of
    the cycles that were started by triggers in the last 24 hours, `train_minutes` those of training in them.
    `stopped` is the last attempt if it failed or was cancelled: what happened, and when. `rollout` says which roll-out
    of the model is at work, and how far it is, without a full stop.
    """

    now: datetime
    new_records: int | None = 0
    corrections: int = 0
    missed: datetime | None = None
    next_schedule: datetime | None = None
    met_since: datetime | None = None
    fired: Sequence[datetime] = ()
    train_minutes: float = 0.0
    running: str = ""
    stopped: tuple[str, datetime] | None = None
    paused: bool = False
    pause_reason: str = ""
    drift: Sequence[DriftState] = ()
    rollout: str = ""
    alerts: Sequence[Alert] = ()


def budgets_used(triggers: Triggers, facts: Facts) -> Mapping[str, float]:
    """The share of each budget that was used in the last 24 hours; what has no limit is left out."""
    cycles = sum(moment > facts.now - DAY for moment in facts.fired)
    found = {"cycles": cycles / triggers.max_cycles_per_day} if triggers.max_cycles_per_day else {}
    if triggers.max_train_minutes:
        found["train_minutes"] = facts.train_minutes / triggers.max_train_minutes
    return found


@dataclass(frozen=True, slots=True)
class Check:
    """One condition now; count and threshold are 0 for a schedule and for drift."""

    condition: str
    met: bool
    why: str
    count: int = 0
    threshold: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for these facts: a cycle starts if a condition is met and nothing holds it back."""

    checks: tuple[Check, ...]
    holds: tuple[str, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why a cycle would start: the conditions that are met."""
        return tuple(check.why for check in self.checks if check.met)

    @property
    def counted(self) -> bool:
        """Whether a count is at its threshold."""
        return any(check.met and check.threshold for check in self.checks)

    @property
    def fires(self) -> bool:
        """Whether a cycle starts now."""
        return bool(self.reasons) and not self.holds

    @property
    def summary(self) -> str:
        """One sentence for a person."""
        if self.fires:
            return f"A cycle starts now: {' '.join(self.reasons)}"
        if self.reasons:
            return f"A cycle is due ({' '.join(self.reasons)}), but: {' '.join(self.holds)}"
        return f"Nothing is due: {' '.join(check.why for check in self.checks)}"


def decide(triggers: Triggers, facts: Facts, zone: tzinfo) -> Decision:
    """Decides whether a cycle starts at one moment.

    Args:
        triggers: the rules.
        facts: what is known.
        zone: the rules' time zone.
    """
    found = Decision(tuple(_checks(triggers, facts, zone)), ())
    at_once = any(check.met and not check.threshold for check in found.checks)
    return replace(found, holds=tuple(_holds(triggers, facts, zone, debounced=found.counted and not at_once)))


def _checks(triggers: Triggers, facts: Facts, zone: tzinfo) -> Sequence[Check]:
    found = []
    if triggers.new_records:
        if facts.new_records is None:
            found.append(Check("new_records", False, "New records are not known: cleaning does not answer."))
        else:
            found.append(_count("new_records", "new records", facts.new_records, triggers.new_records))
    if triggers.corrections:
        found.append(_count("corrections", "corrections", facts.corrections, triggers.corrections))
    if triggers.schedule:
        if facts.missed is not None:
            why = f"The schedule {triggers.schedule} was due at {_words(facts.missed, zone)}."
        elif facts.next_schedule is not None:
            why = f"The schedule {triggers.schedule} is due at {_words(facts.next_schedule, zone)}."
        else:
            why = f"The schedule {triggers.schedule} is never due."
        found.append(Check("schedule", facts.missed is not None, why))
    found += [_alert(name, facts.alerts, zone) for name in triggers.alerts]
    if triggers.drift is not None:
        found += [_drift(state, triggers.drift, zone) for state in facts.drift]
    return found


def _alert(name: str, known: Sequence[Alert], zone: tzinfo) -> Check:
    ours = sorted((alert for alert in known if alert.name == name), key=lambda alert: alert.start_time, reverse=True)
    firing = [alert for alert in ours if not alert.resolved]
    for alert in firing:
        if not alert.answered:
            says = f": {alert.summary.rstrip('.')}" if alert.summary else ""
            return Check("alert", True, f"The alert {name} fires since {_words(alert.start_time, zone)}{says}.")
    if firing:
        since = _words(firing[0].start_time, zone)
        return Check("alert", False, f"The alert {name} fires since {since}, and a cycle has begun since.")
    if ours:
        return Check("alert", False, f"The alert {name} of {_words(ours[0].start_time, zone)} is resolved.")
    return Check("alert", False, f"The alert {name} does not fire.")


_NOUNS = {Signal.INPUT: "texts", Signal.ANSWERS: "answers", Signal.RATINGS: "people who rated"}
_WHAT = {Signal.INPUT: "what is asked", Signal.ANSWERS: "the answers", Signal.RATINGS: "the ratings"}


def _drift(state: DriftState, rules: DriftRules, zone: tzinfo) -> Check:
    condition, what = f"drift.{state.signal.value}", _WHAT[state.signal]
    if state.due:
        assert state.last is not None
        why = (
            f"Drift of {what}: {_seen(state.last, zone)}, an alarm at {state.last.level:.2g} or less; the chance of a "
            f"false alarm in 30 days is {rules.false_alarm:.2g} at most."
        )
        return Check(condition, True, why)
    parts = [f"No drift of {what} is known."]
    if state.last is not None:
        found = "Drift" if state.last.found else "No drift"
        parts = [f"{found} of {what} at {_words(state.last.look_time, zone)}: {_seen(state.last, zone)}."]
        if state.last.found:
            parts.append("A cycle has begun since.")
    if state.blocked:
        parts.append(state.blocked)
    elif state.next_time is not None:
        noun = _NOUNS[state.signal]
        parts.append(
            f"The next look is possible from {_words(state.next_time, zone)} with {state.least:,} {noun}; "
            f"{state.count:,} so far."
        )
    return Check(condition, False, " ".join(parts))


def _seen(look: DriftLook, zone: tzinfo) -> str:
    """What a look saw, without a full stop."""
    noun, since = _NOUNS[look.signal], _words(look.since, zone)
    begin = f"{look.live_count:,} {noun} since {since} beside {look.reference_count:,} of {look.reference}: "
    says = {
        "similarity": f"their similarity to these is {look.now:.0%} of the similarity among these",
        "labels": f"{look.now:.0%} moved to other labels",
        "characters": f"the median length went from {look.before:,.0f} to {look.now:,.0f} characters",
        "rating": f"the mean rating went from {look.before:.2f} to {look.now:.2f}",
    }
    return f"{begin}{says[look.unit]} (p = {look.p_value:.2g})"


def _count(condition: str, noun: str, count: int, threshold: int) -> Check:
    met = count >= threshold
    progress = f"{count:,} {noun}" if met else f"{count:,} of {threshold:,} {noun}"
    why = f"{progress} since the last cycle{f'; {threshold:,} start one' if met else ''}."
    return Check(condition, met, why, count, threshold)


def _holds(triggers: Triggers, facts: Facts, zone: tzinfo, *, debounced: bool) -> Sequence[str]:
    found = []
    if facts.paused:
        found.append(f"It is paused{f': {facts.pause_reason}' if facts.pause_reason else ''}.")
    if facts.running:
        found.append(f"{facts.running} is running.")
    if facts.rollout and not triggers.during_rollouts:
        found.append(f"A roll-out is at work: {facts.rollout}; the next cycle starts after it.")
    if facts.stopped is not None:
        what, ended = facts.stopped
        again = ended + PAUSE_AFTER_STOP
        if facts.now < again:
            found.append(f"{what.rstrip('.')}; none is started before {_words(again, zone)}.")
    if debounced:
        until = (facts.met_since or facts.now) + timedelta(minutes=triggers.debounce_minutes)
        if facts.now < until:
            found.append(f"It waits for more until {_words(until, zone)} (debounce).")
    recent = sorted(moment for moment in facts.fired if moment > facts.now - DAY)
    limit = triggers.max_cycles_per_day
    if len(recent) >= limit:
        until_words = f"; the next is possible at {_words(recent[-limit] + DAY, zone)}" if limit else ""
        found.append(f"{len(recent):,} cycles of {limit:,} were started in 24 hours (budget){until_words}.")
    if triggers.max_train_minutes and facts.train_minutes >= triggers.max_train_minutes:
        used, of = facts.train_minutes, triggers.max_train_minutes
        found.append(f"{used:,.1f} of {of:,.1f} minutes of training were used in 24 hours (budget).")
    local = facts.now.astimezone(zone).time()
    for hours in triggers.quiet_hours:
        if hours.contains(local):
            found.append(f"Quiet hours until {hours.end} ({triggers.time_zone}).")
    return found


def _words(moment: datetime, zone: tzinfo) -> str:
    return f"{moment.astimezone(zone):%Y-%m-%d %H:%M %Z}"
