"""A roll-out: where a new version stands on its way to all users, and how it continues."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum

from services.pipeline.domain.rollout_plan import PlannedStep, RolloutPlan


class RolloutState(Enum):
    """State of a roll-out."""

    PENDING = "pending"
    """Another one of the model is at work."""
    RUNNING = "running"
    AWAITING_APPROVAL = "awaiting_approval"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"

    @property
    def final(self) -> bool:
        """Whether nothing more is decided."""
        return self in (RolloutState.PROMOTED, RolloutState.ROLLED_BACK)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What became of a step; `etags` are those of the routes by which its answers were given.

    `looks` are those at a comparison with a maximum, each as the share of the maximum that had judged.
    """

    start_time: datetime | None = None
    end_time: datetime | None = None
    reason: str = ""
    etags: tuple[str, ...] = ()
    looks: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the figures of a comparison said when `users` of both versions had judged.

    `value` is the candidate's advantage, `low` and `high` are the ends of its confidence sequence.
    """

    time: datetime
    users: int
    value: float
    low: float
    high: float


_MORE_USERS = 1.05
"""An estimate is kept when this many times the users of the last one have judged: 200 of a million users."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """The introduction of a version; at most one of a model is at work.

    A decision is stored first, with `applied` false, and then carried out; so a process that is killed in between
    neither forgets nor repeats it.
    """

    rollout_id: str
    pipeline: str
    cycle: str
    model: str
    candidate: str
    run: str
    plan: RolloutPlan
    create_time: datetime
    update_time: datetime
    state: RolloutState = RolloutState.PENDING
    champion: str = ""
    step: int = 0
    records: tuple[StepRecord, ...] = ()
    reason: str = ""
    applied: bool = True
    frozen: bool = False
    promote_next: bool = False
    """While it awaits approval: whether what is proposed is the promotion."""
    revision: int = 0
    estimates: tuple[Estimate, ...] = ()

    @property
    def name(self) -> str:
        """`rollouts/{rollout}`."""
        return f"rollouts/{self.rollout_id}"

    @property
    def planned(self) -> PlannedStep:
        """The current step's plan."""
        return self.plan.steps[self.step]

    @property
    def record(self) -> StepRecord:
        """The current step's record."""
        return self.records[self.step]

    @property
    def is_last_step(self) -> bool:
        """Whether promotion follows."""
        return self.step == len(self.plan.steps) - 1

    @property
    def summary(self) -> str:
        """Where it stands, for a person; without a full stop."""
        if self.frozen:
            where = f"held; `tidemill rollout resume {self.name}` continues it"
        elif self.state is RolloutState.AWAITING_APPROVAL:
            where = f"waiting for `tidemill rollout approve {self.name}`"
        elif self.state is RolloutState.RUNNING:
            where = f"step {self.step + 1} of {len(self.plan.steps)}, {self.planned.kind.value}"
        else:
            where = self.state.value.replace("_", " ")
        return f"{self.name} introduces {self.candidate} ({where})"

    def begun(self, champion: str) -> Rollout:
        """In its first step."""
        records = tuple(StepRecord() for _ in self.plan.steps)
        why = f"{self.candidate} is introduced beside {champion}."
        return replace(self, state=RolloutState.RUNNING, champion=champion, records=records, applied=False, reason=why)

    def stepped(self, reason: str, now: datetime) -> Rollout:
        """In its next step."""
        return replace(
            self._over(reason, now), state=RolloutState.RUNNING, step=self.step + 1, applied=False, reason=reason
        )

    def held(self, reason: str) -> Rollout:
        """Frozen at its step."""
        return replace(self, frozen=True, reason=reason)

    def resumed(self, reason: str) -> Rollout:
        """No longer frozen; its route is set as planned again."""
        return replace(self, frozen=False, applied=False, reason=reason)

    def proposed(self, reason: str) -> Rollout:
        """Waiting for a person to allow what follows the current step."""
        return replace(self, state=RolloutState.AWAITING_APPROVAL, reason=reason, promote_next=self.is_last_step)

    def ended(self, state: RolloutState, reason: str, now: datetime) -> Rollout:
        """In a final state, whose route is still to be set."""
        return replace(self._over(reason, now), state=state, reason=reason, applied=False, frozen=False)

    def routed(self, etag: str, now: datetime) -> Rollout:
        """Carried out: the route is as the state asks for, and has this etag."""
        if self.state.final:
            return replace(self, applied=True)
        known = self.record
        etags = known.etags if etag in known.etags else (*known.etags, etag)
        return self._recorded(replace(known, start_time=known.start_time or now, etags=etags), applied=True)

    def estimated(self, estimate: Estimate) -> Rollout | None:
        """With one estimate more; None if hardly more users have judged than at the last one."""
        if self.estimates and estimate.users < _MORE_USERS * self.estimates[-1].users:
            return None
        return replace(self, estimates=(*self.estimates, estimate))

    def looked(self, share: float) -> Rollout:
        """With one more look at the comparison, at this share of its maximum."""
        return self._recorded(replace(self.record, looks=(*self.record.looks, share)))

    def _over(self, reason: str, now: datetime) -> Rollout:
        return self._recorded(replace(self.record, end_time=now, reason=reason)) if self.records else self

    def _recorded(self, record: StepRecord, *, applied: bool | None = None) -> Rollout:
        records = (*self.records[: self.step], record, *self.records[self.step + 1 :])
        return replace(self, records=records, applied=self.applied if applied is None else applied)
