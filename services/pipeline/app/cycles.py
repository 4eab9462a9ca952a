"""Create, read and cancel cycles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from services.kit.clock import Clock
from services.kit.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    not_found,
    request_id_reused,
)
from services.kit.ids import new_id
from services.kit.schedules import check_schedule, zone_of
from services.masking.masks import mask_of
from services.pipeline.app.cycle_runner import dataset_spec
from services.pipeline.app.ports import CycleStore, Datasets
from services.pipeline.app.triggers import check_triggers
from services.pipeline.domain.cycle import Cycle, PipelineSpec
from services.pipeline.domain.judge import JudgeSpec, check_judges, wrong
from services.pipeline.domain.learning import SOURCE_PREFIX


class Cycles:
    """Use cases on cycles; `started` and `cancelled` notify the scheduler, with the cycle's name."""

    def __init__(
        self,
        store: CycleStore,
        datasets: Datasets,
        clock: Clock,
        started: Callable[[str], None],
        cancelled: Callable[[str], None],
        register: Callable[[PipelineSpec], object],
        check_judge: Callable[[JudgeSpec, str], None] = lambda _judge, _place: None,
    ) -> None:
        """`register` sets the pipeline's triggers, or ends them where it has none; it blocks.

        `check_judge` refuses a judge that could never be asked, given with its place; it blocks.
        """
        self._store, self._datasets, self._clock = store, datasets, clock
        self._started, self._cancelled, self._register = started, cancelled, register
        self._check_judge = check_judge

    async def create(
        self, spec: PipelineSpec, request_id: str, traceparent: str, reasons: tuple[str, ...] = ()
    ) -> Cycle:
        """Starts a cycle; answers with the one of the same request, or with the equal one that is running.

        Args:
            spec: what it runs.
            request_id: a repeat gets the first one's cycle.
            traceparent: its trace.
            reasons: why triggers start it; empty if a person does, whose spec also sets the pipeline's triggers.

        Raises:
            InvalidArgumentError: cleaning cannot apply the recipe, two sources share a name, or the request id was used
                for another spec.
            FailedPreconditionError: the pipeline is running with another spec.
        """
        known = await asyncio.to_thread(self._store.by_request, request_id) if request_id else None
        if known is not None:
            return _same(known, spec)
        running = await self._at_work(spec)
        if running is not None:
            return running
        _check(spec)
        await asyncio.to_thread(self._check_judges, spec)
        try:
            # At once, so that a wrong recipe is refused here and records are cleaned as they arrive.
            await self._datasets.put(spec.dataset_name, dataset_spec(spec))
        except InvalidArgumentError as error:
            violations = [
                FieldViolation(f"spec.dataset.{v.field.removeprefix('spec.')}", v.description) for v in error.violations
            ]
            raise InvalidArgumentError(
                error.message, reason=error.reason, metadata=error.metadata, violations=violations
            ) from error
        if not reasons:
            await asyncio.to_thread(self._register, spec)
        now = self._clock.now()
        draft = Cycle(
            spec.name, new_id(), spec, now, now, request_id=request_id, traceparent=traceparent, reasons=reasons
        )
        try:
            cycle = await asyncio.to_thread(self._store.create, draft)
        except AlreadyExistsError:
            running = await self._at_work(spec)
            if running is None:
                raise
            return running
        self._started(cycle.name)
        return _same(cycle, spec)

    async def get(self, name: str) -> Cycle:
        """The cycle.

        Raises:
            NotFoundError: there is none.
        """
        cycle = await asyncio.to_thread(self._store.get, name)
        if cycle is None:
            raise not_found("cycle", name)
        return cycle

    async def page(self, pipeline: str, before: str, limit: int) -> Sequence[Cycle]:
        """Cycles of a pipeline (of all if empty) older than the given id, newest first."""
        return await asyncio.to_thread(self._store.page, pipeline, before, limit)

    async def cancel(self, name: str) -> Cycle:
        """Asks a cycle to stop; one that ended stays as it is."""
        if not (await self.get(name)).state.final:
            await asyncio.to_thread(self._store.request_cancel, name)
            self._cancelled(name)
        return await self.get(name)

    def _check_judges(self, spec: PipelineSpec) -> None:
        place = "spec.capture.judges"
        judges = spec.capture.judges if spec.capture is not None else ()
        check_judges(judges, place, classifies=spec.classifies)
        wanted = spec.plan.comparison.judge if spec.plan is not None else ""
        if wanted and wanted not in {judge.name for judge in judges}:
            raise wrong("spec.rollout.ab.judge", f"capture.judges names no {wanted!r}")
        for number, judge in enumerate(judges):
            self._check_judge(judge, f"{place}[{number}]")

    async def _at_work(self, spec: PipelineSpec) -> Cycle | None:
        running = await asyncio.to_thread(self._store.at_work, spec.name)
        if running is None:
            return None
        if running.spec == spec:
            return replace(running, reused=True)
        raise FailedPreconditionError(
            f"The pipeline {spec.name} is running with another spec ({running.name}). Wait for its end or cancel it.",
            reason="CYCLE_AT_WORK",
            metadata={"cycle": running.name},
        )


def _same(known: Cycle, spec: PipelineSpec) -> Cycle:
    """The cycle of a repeated request."""
    if known.spec != spec:
        raise request_id_reused(known.request_id, "cycle", cycle=known.name)
    return known


def _check(spec: PipelineSpec) -> None:
    if spec.capture is not None:
        mask_of(spec.capture.masks, "spec.capture.masks")
    check_triggers(spec)
    seen: set[str] = set()
    for number, source in enumerate(spec.sources):
        name = str(source["source"])
        if name in seen:
            raise InvalidArgumentError(
                f"Two sources of the pipeline are called {name!r}.",
                violations=[
                    FieldViolation(f"spec.sources[{number}].source", "must differ from the other sources' names")
                ],
            )
        if name.startswith(SOURCE_PREFIX):
            what = f"must not begin with {SOURCE_PREFIX!r}, which stands for feedback"
            raise InvalidArgumentError(
                f"spec.sources[{number}].source {what}.",
                violations=[FieldViolation(f"spec.sources[{number}].source", what)],
            )
        seen.add(name)
        if (collect := source.get("collect")) is not None:
            place = f"spec.sources[{number}].collect"
            zone_of(collect.get("time_zone", "UTC"), f"{place}.time_zone")
            if schedule := collect.get("schedule"):
                check_schedule(schedule, f"{place}.schedule")
