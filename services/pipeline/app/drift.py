"""Looks for drift: compares what is asked, answered and said of a model now with what it was, and keeps the figures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.kit.clock import Clock
from services.kit.errors import TidemillError
from services.kit.ids import sha256_hex
from services.masking.masks import mask_of
from services.pipeline.app.drift_ports import DriftGauges, DriftStore, TrainingTexts
from services.pipeline.app.ports import CycleStore
from services.pipeline.app.trigger_ports import TriggerStore
from services.pipeline.domain.cycle import Cycle, PipelineSpec
from services.pipeline.domain.drift import DriftLook, DriftRules, DriftState, Signal
from services.pipeline.engine.drift import (
    MAX_LIVE,
    MAX_REFERENCE,
    Shift,
    label_shift,
    length_shift,
    level,
    rating_shift,
    text_shift,
)

logger = logging.getLogger(__name__)

_PAGE = 100


@dataclass(frozen=True, slots=True)
class _Window:
    """What a look compares: members after `since` with the reference of `key`, which for a version ends at `until`."""

    reference: str
    key: str
    since: datetime
    until: datetime | None = None


class DriftWatch:
    """`step` looks once at what is due; `states` says where each signal stands. Thread-safe but for `step`."""

    def __init__(
        self,
        store: DriftStore,
        texts: TrainingTexts,
        triggers: TriggerStore,
        cycles: CycleStore,
        gauges: DriftGauges,
        clock: Clock,
    ) -> None:
        self._store, self._texts, self._triggers, self._cycles = store, texts, triggers, cycles
        self._gauges, self._clock = gauges, clock
        self._failures: dict[tuple[str, Signal], str] = {}

    async def step(self) -> None:
        """Looks at every signal that is due."""
        after = ""
        while page := await asyncio.to_thread(self._triggers.page, after, _PAGE):
            for trigger in page:
                try:
                    await asyncio.to_thread(self.look, trigger.spec)
                except Exception:
                    # One pipeline's defect must not keep the others from being looked at.
                    logger.exception("the drift of %s could not be looked at", trigger.pipeline)
            after = page[-1].pipeline

    def look(self, spec: PipelineSpec) -> None:
        """Looks at the signals of a pipeline that are due."""
        rules = _rules(spec)
        learnt = self._cycles.learnt(spec.name) if rules is not None else None
        if rules is None or learnt is None:
            return
        now = self._clock.now()
        known = self._store.looks(spec.name)
        for signal in rules.signals:
            if (last := known.get(signal)) is not None:
                self._gauges.show(last)
            window = self._window(spec, rules, signal, learnt, last)
            if isinstance(window, DriftState) or not self._is_due(spec, rules, signal, window, now):
                continue
            try:
                look = self._look_at(spec, rules, signal, window, learnt, now)
            except TidemillError as error:
                if self._failures.get((spec.name, signal)) != error.message:
                    logger.warning("the drift of %s of %s is not known: %s", signal.value, spec.name, error.message)
                self._failures[spec.name, signal] = error.message
                continue
            self._failures.pop((spec.name, signal), None)
            self._store.keep(look)
            self._gauges.show(look)
            found = "drift" if look.found else "no drift"
            logger.info("%s of %s of %s (p = %.2g)", found, signal.value, spec.name, look.p_value)

    def states(self, spec: PipelineSpec, learnt: Cycle | None) -> Sequence[DriftState]:
        """Where each signal of a pipeline stands; `learnt` is its newest cycle that has a data set."""
        rules = _rules(spec)
        if rules is None:
            return []
        known = self._store.looks(spec.name)
        return [self._state(spec, rules, signal, learnt, known.get(signal)) for signal in rules.signals]

    def _state(
        self, spec: PipelineSpec, rules: DriftRules, signal: Signal, learnt: Cycle | None, last: DriftLook | None
    ) -> DriftState:
        if learnt is None:
            return DriftState(signal, last, blocked="No cycle has learnt yet, so there is nothing to compare with.")
        if last is not None and last.found and last.look_time > _begun(learnt):
            return DriftState(signal, last, due=True)
        window = self._window(spec, rules, signal, learnt, last)
        if isinstance(window, DriftState):
            return window
        if failure := self._failures.get((spec.name, signal)):
            return DriftState(signal, last, blocked=f"It could not be looked at: {failure}")
        next_time = window.since + timedelta(hours=rules.every_hours)
        count = self._count(spec, signal, window)
        return DriftState(signal, last, next_time=next_time, count=count, least=rules.least(signal))

    def _window(
        self, spec: PipelineSpec, rules: DriftRules, signal: Signal, learnt: Cycle, last: DriftLook | None
    ) -> _Window | DriftState:
        """What the next look compares, or why there is none."""
        if signal is Signal.INPUT:
            version = learnt.dataset_version or {}
            begin = _begun(learnt)
            window = _Window(str(version["name"]), str(version["digest"]), begin)
            until_changed = "It is looked for again when the data set has changed."
        else:
            serving = self._store.serving(spec.model)
            if not serving:
                return DriftState(signal, last, blocked=f"No answer of {spec.model} is captured yet.")
            first = self._store.reference_end(serving, signal, rules.least(signal), timedelta(hours=rules.every_hours))
            if first is None:
                least, noun = rules.least(signal), "ratings" if signal is Signal.RATINGS else "answers"
                return DriftState(signal, last, blocked=f"{serving} needs its first {least:,} {noun} to compare with.")
            window = _Window(serving, serving, first, first)
            until_changed = "It is looked for again when another version serves."
        if last is not None and last.key == window.key:
            if last.found:
                return DriftState(signal, last, blocked=until_changed)
            since = max(window.since, last.look_time)
            return _Window(window.reference, window.key, since, window.until)
        return window

    def _is_due(self, spec: PipelineSpec, rules: DriftRules, signal: Signal, window: _Window, now: datetime) -> bool:
        if now < window.since + timedelta(hours=rules.every_hours):
            return False
        return self._count(spec, signal, window) >= rules.least(signal)

    def _count(self, spec: PipelineSpec, signal: Signal, window: _Window) -> int:
        if signal is Signal.INPUT:
            return self._store.count_asked(spec.model, window.since)
        if signal is Signal.ANSWERS:
            return self._store.count_given(window.key, window.since)
        return self._store.count_rated(window.key, window.since)

    def _look_at(
        self, spec: PipelineSpec, rules: DriftRules, signal: Signal, window: _Window, learnt: Cycle, now: datetime
    ) -> DriftLook:
        alarm = level(rules.false_alarm, rules.every_hours, len(rules.signals))
        compare: dict[Signal, Callable[[], tuple[str, Shift]]] = {
            Signal.INPUT: lambda: ("similarity", self._compare_texts(spec, window, learnt, alarm)),
            Signal.ANSWERS: lambda: self._compare_answers(window),
            Signal.RATINGS: lambda: ("rating", self._compare_ratings(window)),
        }
        unit, shift = compare[signal]()
        return DriftLook(
            pipeline=spec.name,
            signal=signal,
            look_time=now,
            since=window.since,
            reference=window.reference,
            key=window.key,
            unit=unit,
            p_value=shift.p_value,
            level=alarm,
            before=shift.before,
            now=shift.now,
            reference_count=shift.reference_count,
            live_count=shift.live_count,
        )

    def _compare_texts(self, spec: PipelineSpec, window: _Window, learnt: Cycle, alarm: float) -> Shift:
        seed = int(sha256_hex(spec.name, window.key, str(window.since))[:8], 16)
        # Captured texts are masked, so those of the training are compared masked as well.
        mask = mask_of(spec.capture.masks if spec.capture is not None else ())
        uri = str((learnt.dataset_version or {})["uri"])
        trained = [mask(text) for text in self._texts.sample(uri, MAX_REFERENCE, seed)]
        return text_shift(trained, self._store.asked(spec.model, window.since, MAX_LIVE, seed), alarm, seed)

    def _compare_answers(self, window: _Window) -> tuple[str, Shift]:
        before = self._store.given(window.key, None, window.until, MAX_REFERENCE)
        now = self._store.given(window.key, window.since, None, MAX_LIVE)
        if any(label for label, _ in before):
            return "labels", label_shift([label for label, _ in before], [label for label, _ in now])
        return "characters", length_shift([length for _, length in before], [length for _, length in now])

    def _compare_ratings(self, window: _Window) -> Shift:
        before = self._store.ratings(window.key, None, window.until)
        return rating_shift(before, self._store.ratings(window.key, window.since, None))


def _rules(spec: PipelineSpec) -> DriftRules | None:
    return spec.triggers.drift if spec.triggers is not None else None


def _begun(cycle: Cycle) -> datetime:
    """When it began to collect: what came later it may not have seen."""
    return cycle.stage("collect").start_time or cycle.create_time
