"""Lets judges rate answers in the background, and measures how well each agrees with people.

No answer waits for a judge: a captured answer is stored with the judges that are to rate it, and each judge works
through its own queue. If a judge is unavailable or slow, its answers wait; it is called again with growing pauses, and
after a day without a response they fail. A response that is not a verdict is requested up to three times.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from services.kit.clock import Clock
from services.kit.errors import TidemillError
from services.masking.masks import DEFAULT_MASKS
from services.pipeline.app.judge_ports import Asked, Evaluators, JudgeStore, Tally
from services.pipeline.domain.audit import MESH, entry
from services.pipeline.domain.capture import CapturePolicy
from services.pipeline.domain.judge import (
    GIVE_UP,
    MAX_ATTEMPTS,
    Check,
    JudgeRating,
    ModelJudge,
    NoVerdictError,
    Standing,
    check_of,
)
from services.pipeline.engine.agreement import agreement

logger = logging.getLogger(__name__)

_AT_ONCE = 2
_CHECK_EVERY = timedelta(seconds=30)
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=2), timedelta(minutes=5)
_RETRY_VERDICT = timedelta(seconds=30)

Policies = Callable[[], Sequence[CapturePolicy]]


@dataclass(frozen=True, slots=True)
class JudgeView:
    """A judge with what it did, what it cost, and how it compares with people."""

    judge: ModelJudge
    tally: Tally
    standing: Standing
    check: Check
    error: str


@dataclass(slots=True)
class _Outage:
    """A judge that cannot be asked: why, since how many attempts, and when it is tried again."""

    message: str
    attempts: int
    until: datetime


@dataclass(slots=True)
class Judges:
    """Use cases on judges. `step` belongs to one task; the rest is thread-safe."""

    store: JudgeStore
    evaluators: Evaluators
    policies: Policies
    clock: Clock
    _working: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _outages: dict[str, _Outage] = field(default_factory=dict)
    _checked: datetime | None = None

    async def step(self) -> None:
        """Starts each judge that is idle and available, and looks at all of them from time to time. Waits for none."""
        judges = await asyncio.to_thread(self.all)
        now = self.clock.now()
        for judge in judges:
            outage = self._outages.get(judge.name)
            if judge.name in self._working or (outage is not None and now < outage.until):
                continue
            self._working[judge.name] = asyncio.create_task(self._work(judge))
        if self._checked is None or now - self._checked >= _CHECK_EVERY:
            self._checked = now
            for judge in judges:
                await asyncio.to_thread(self._check, judge)

    async def stop(self) -> None:
        """Ends what is under way; it is done again after the next start."""
        working = list(self._working.values())
        for task in working:
            task.cancel()
        for task in working:
            with suppress(asyncio.CancelledError):
                await task

    async def idle(self) -> None:
        """Returns once no judge is at work."""
        while self._working:
            await asyncio.wait(list(self._working.values()))
            await asyncio.sleep(0)

    def all(self) -> Sequence[ModelJudge]:
        """Every judge that a pipeline names, by name."""
        found = [
            ModelJudge(policy.model, policy.pipeline, spec)
            for policy in self.policies()
            for spec in policy.capture.judges
        ]
        return sorted(found, key=lambda judge: judge.name)

    def page(self, model: str, after: str, limit: int) -> Sequence[JudgeView]:
        """Judges of a model (of all when empty) with names after the given one."""
        wanted = [judge for judge in self.all() if judge.name > after and model in ("", judge.model)]
        return [self._view(judge) for judge in wanted[:limit]]

    def ratings(self, model: str, judge: str, answer: str, before: str, limit: int) -> Sequence[JudgeRating]:
        """What judges said, newest answer first, after the place `{answer id}/{judge}`."""
        return self.store.page(model, judge, answer, before, limit)

    def checked(self, model: str, name: str) -> Check:
        """Whether a judge may be used for a decision now; one that no pipeline names may not."""
        for judge in self.all():
            if (judge.model, judge.spec.name) == (model, name):
                return check_of(judge.spec, self._standing(judge))
        return Check(False, f"No pipeline of {model} names the judge {name}.")

    def _view(self, judge: ModelJudge) -> JudgeView:
        standing, outage = self._standing(judge), self._outages.get(judge.name)
        tally = self.store.tally(judge, self.clock.now())
        return JudgeView(judge, tally, standing, check_of(judge.spec, standing), outage.message if outage else "")

    def _standing(self, judge: ModelJudge) -> Standing:
        words = {True: "good", False: "bad"}
        found = agreement([(words[people], words[own]) for people, own in self.store.common(judge)])
        return Standing(found.count, found.observed, found.kappa)

    def _check(self, judge: ModelJudge) -> None:
        """Puts into the audit trail that a judge may be used for decisions from now on, or no longer."""
        now = self.clock.now()
        check, before = check_of(judge.spec, self._standing(judge)), self.store.verdict(judge)
        known = before is not None and before.version == judge.spec.version
        if before is not None and known and before.passed == check.passed:
            return
        action = "judge.passed" if check.passed else "judge.failed" if known else "judge.named"
        facts = {**check.facts, "pipeline": judge.pipeline, "version": judge.spec.version}
        self.store.decide(judge, check.passed, entry(now, MESH, action, judge.name, check.why, facts), now)

    async def _work(self, judge: ModelJudge) -> None:
        """Works through what waits for a judge, until nothing is due or it cannot be asked."""
        try:
            now = self.clock.now()
            if given_up := await asyncio.to_thread(self.store.give_up, judge, now - GIVE_UP, now):
                logger.warning("%s did not rate %d answers within a day; they are not rated", judge.name, given_up)
            tokens = await asyncio.to_thread(self._tokens, judge.model)
            while asked := await asyncio.to_thread(self.store.due, judge, _AT_ONCE, self.clock.now()):
                results = await asyncio.gather(
                    *(self._rate(judge, item, tokens) for item in asked), return_exceptions=True
                )
                failures = [result for result in results if isinstance(result, BaseException)]
                if failures:
                    raise failures[0]
                if self._outages.pop(judge.name, None) is not None:
                    logger.info("%s rates again", judge.name)
        except TidemillError as error:
            self._unavailable(judge, error.message, error.retry_after_s)
        except Exception:
            logger.exception("%s: a rating failed; retrying", judge.name)
            self._unavailable(judge, "It failed unexpectedly; the log of the pipeline service says how.", None)
        finally:
            self._working.pop(judge.name, None)

    async def _rate(self, judge: ModelJudge, asked: Asked, tokens: Mapping[str, str]) -> None:
        answer, now = asked.answer.name, self.clock.now()
        if judge.spec.makes_calls and not await asyncio.to_thread(self.store.spend, judge, now):
            why = "The limit of calls or tokens of this day is reached; answers are not rated until 00:00 UTC."
            limit = entry(now, MESH, "judge.limit", judge.name, why, {"pipeline": judge.pipeline})
            await asyncio.to_thread(self.store.skip, judge, answer, limit, now)
            return
        try:
            opinion = await self.evaluators.rate(judge.spec, asked.answer, tokens)
        except NoVerdictError as error:
            attempts = asked.attempts + 1
            retry = now + _RETRY_VERDICT * attempts if attempts < MAX_ATTEMPTS else None
            fail = partial(self.store.fail, judge, answer, error.reason, error.tokens)
            await asyncio.to_thread(fail, retry, self.clock.now())
            return
        except TidemillError:
            # Others come first then: one text that takes the judge too long does not hold up the rest.
            await asyncio.to_thread(self.store.postpone, judge, answer, now + _RETRY_VERDICT)
            raise
        await asyncio.to_thread(self.store.rate, judge, answer, opinion, self.clock.now())

    def _unavailable(self, judge: ModelJudge, message: str, retry_after_s: float | None) -> None:
        """Pauses a judge that cannot be asked, longer each time."""
        before = self._outages.get(judge.name)
        attempts = before.attempts + 1 if before is not None else 1
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(attempts - 1, 10))
        if retry_after_s is not None:
            pause = min(_LONGEST_PAUSE, max(pause, timedelta(seconds=retry_after_s)))
        if before is None or before.message != message:
            logger.warning("%s waits: %s", judge.name, message)
        self._outages[judge.name] = _Outage(message, attempts, self.clock.now() + pause)

    def _tokens(self, model: str) -> Mapping[str, str]:
        """What the masks of a model replace personal data by, by kind, where it is not the default."""
        found: dict[str, str] = {}
        for policy in self.policies():
            if policy.model == model:
                for mask in policy.capture.masks or DEFAULT_MASKS:
                    found |= dict(mask.params.get("tokens", {}))
        return found
