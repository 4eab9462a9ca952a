"""Runs one cycle through its stages, starting from its stored state.

A stage calls its peer with request ids derived from the cycle's name, so a stage that is repeated after a crash finds
the work it had already started. Retryable errors are retried until they pass; any other error ends the cycle.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from services.kit.clock import Clock
from services.kit.errors import TidemillError, UnavailableError, is_retryable
from services.kit.failure import Failure
from services.kit.retrying import Backoff, call_with_retries_async
from services.kit.threads import in_thread
from services.pipeline.app.capture import Captures
from services.pipeline.app.ports import (
    Announcer,
    CycleStore,
    Datasets,
    Models,
    Published,
    RolloutStarter,
    SourceDeclarations,
    StageTracing,
    Wakeups,
    Work,
    Worker,
)
from services.pipeline.domain.cycle import Cycle, CycleState, Json, PipelineSpec, Stage, StageState, is_pushed
from services.pipeline.domain.gate import judge, measured

logger = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 0.25
_CYCLES_READ = 50
# How long a cancelled cycle waits to learn the name of the work that it was just ordering.
_ORDER_PATIENCE_S = 10.0
# A publication that has begun finishes; one that waits for its peer is cancelled.
_NOT_CANCELLABLE = ("gate", "publish")

# Cleaning's reason if the bus has deleted records before it had read them.
_LOST = "RECORDS_LOST"
# The counts of an import that cleaning needs.
_AWAITED = ("record_count", "withdrawn_count", "changed_count")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CycleDependencies:
    """What a runner needs."""

    cycles: CycleStore
    sources: SourceDeclarations
    imports: Worker
    datasets: Datasets
    dataset_versions: Worker
    runs: Worker
    models: Models
    rollouts: RolloutStarter
    captures: Captures
    announcer: Announcer
    wakeups: Wakeups
    tracing: StageTracing
    clock: Clock


class _StageFailedError(Exception):
    """The stage stopped the cycle."""

    def __init__(self, state: CycleState, failure: Failure | None, summary: str) -> None:
        super().__init__(summary)
        self.state, self.failure, self.summary = state, failure, summary


class CycleRunner:
    """Runs one cycle; at most one runner per cycle may be active at a time."""

    def __init__(self, dependencies: CycleDependencies, cycle: Cycle) -> None:
        self._deps = dependencies
        self._cycle = cycle
        self._cancel = asyncio.Event()
        self._saved_at = 0.0
        # Work still to be cancelled at a peer that was unavailable when the cycle ended.
        self._left = self._unfinished_work() if cycle.state.final else []

    async def run(self, cancel: asyncio.Event) -> None:
        """Returns when the cycle has ended, its event is published, and no peer works for it any more.

        It ends sooner where `cancel` is set.
        """
        self._cancel = cancel
        while (stage := self._cycle.current) is not None and not self._cycle.state.final:
            await self._run_stage(stage)
        if not self._cycle.state.final:
            await self._end(CycleState.SUCCEEDED)
        await self._with_retries(lambda: asyncio.to_thread(self._deps.announcer.cycle_ended, self._cycle))
        for of_stage, resource in self._left:
            await self._with_retries(partial(self._stop, of_stage, resource))
        self._cycle = replace(self._cycle, announced=True)
        await self._save()

    async def _run_stage(self, stage: Stage) -> None:
        now = self._deps.clock.now()
        if stage.state is StageState.PENDING:
            if self._cancel.is_set():
                await self._end(CycleState.CANCELLED)
                return
            await self._change(replace(stage, state=StageState.RUNNING, start_time=now))
        do = {
            "collect": self._collect,
            "clean": self._clean,
            "train": self._train,
            "gate": self._gate,
            "publish": self._publish,
        }[stage.name]
        with self._deps.tracing.stage(self._cycle, stage.name):
            try:
                if await self._unless_cancelled(do, stage.name):
                    done = replace(
                        self._stage(stage.name),
                        state=StageState.SUCCEEDED,
                        end_time=self._deps.clock.now(),
                        progress=None,
                    )
                    await self._change(done)
                    if stage.name == "clean" and await self._unchanged():
                        await self._end(CycleState.UNCHANGED)
                else:
                    await self._stop_work(stage.name)
                    await self._end(CycleState.CANCELLED)
            except _StageFailedError as error:
                await self._fail(stage.name, error.state, error.failure, error.summary)
            except Exception as error:
                if not isinstance(error, TidemillError):
                    logger.exception("%s of %s failed unexpectedly", stage.name, self._cycle.name)
                failure = Failure.of(error, f"The pipeline service's stage {stage.name}")
                await self._fail(stage.name, CycleState.FAILED, failure, failure.message)

    async def _unless_cancelled(self, do: Callable[[], Awaitable[None]], stage: str) -> bool:
        """Does it; False if the cycle was cancelled instead."""
        if stage in _NOT_CANCELLABLE:
            await do()
            return True
        if self._cancel.is_set():
            return False
        work, cancelled = asyncio.ensure_future(do()), asyncio.ensure_future(self._cancel.wait())
        try:
            await asyncio.wait({work, cancelled}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
                return True
            return False
        finally:
            for task in (work, cancelled):
                task.cancel()
            await asyncio.gather(work, cancelled, return_exceptions=True)

    async def _collect(self) -> None:
        spec = self._cycle.spec
        await self._with_retries(
            lambda: asyncio.to_thread(self._deps.captures.put_policy, spec.model, spec.name, spec.capture), "collect"
        )
        if not self._cycle.reasons:
            # Those that triggers start have the file of an earlier one: what a person deleted since stays deleted.
            declared = [source for source in spec.sources if "collect" in source or is_pushed(source)]
            declare = partial(self._deps.sources.declare, spec.name, declared, self._request("declare"))
            await self._with_retries(declare, "collect")
        imports: list[Work] = []
        for number, source in enumerate(await self._sources()):
            work = await self._start("collect", self._deps.imports, {"spec": source}, f"import-{number}")
            imports.append(work)
        ended = [await self._follow("collect", self._deps.imports, work) for work in imports]
        self._cycle = replace(self._cycle, imports=tuple(work.body for work in ended))
        counts = [int(work.body.get("record_count", 0)) for work in ended]
        rejected = sum(int(work.body.get("rejected_count", 0)) for work in ended)
        # Records without ids may repeat silently in a source, so the summary counts the repeats.
        read = sum(int(work.body.get("progress", {}).get("done", 0)) for work in ended)
        repeats = read - rejected - sum(counts)
        lessons = self._cycle.lessons or {}
        counted = int(lessons.get("count", 0))
        names, pushed = ", ".join(spec.pulled_source_names), ", ".join(spec.pushed_source_names)
        pulled = [f"{sum(counts) - counted:,} records from {names}"] if names else []
        pulled += [f"{repeats:,} repeats"] if repeats > 0 else []
        pulled += [f"{rejected:,} refused"] if rejected else []
        for name, word in (("changed_count", "changed"), ("withdrawn_count", "gone")):
            count = sum(int(work.body.get(name, 0)) for work in ended if not work.reused)
            pulled += [f"{count:,} {word}"] if count else []
        words = [", ".join(pulled)] if pulled else []
        whys = {str(work.body.get("not_synchronized", "")) for work in ended}
        # Of a log nothing is gone: its records stay by design.
        kept = sorted(whys - {"", "incremental"})
        words += [f"what is gone was kept ({', '.join(kept)})"] if kept else []
        if counted:
            taught = f"{lessons['correction']:,} corrections and {lessons['accepted']:,} accepted answers"
            words.append(f"{taught} of {lessons['people']:,} people")
        if pushed:
            words.append(f"{'and ' if words else ''}what was pushed to {pushed}")
        # Whether anything was pushed since, only the data set's version shows.
        reused = not pushed and all(work.reused for work in ended)
        await self._summarize("collect", "; ".join(words), reused)

    async def _sources(self) -> Sequence[Json]:
        """What is imported: the pipeline's sources that are pulled, and the file with what feedback teaches.

        The file is written once a cycle: an import that is resumed must find what it began with.
        """
        spec = self._cycle.spec
        # When a source is collected by itself is not a matter of its import.
        pulled = [
            {name: value for name, value in source.items() if name != "collect"} for source in spec.pulled_sources
        ]
        if spec.feedback is None:
            return pulled
        if self._cycle.lessons is None:
            write = partial(asyncio.to_thread, self._deps.captures.write_lessons, spec, self._cycle.name)
            self._cycle = replace(self._cycle, lessons=await self._with_retries(write, "collect"))
            await self._save()
        assert self._cycle.lessons is not None
        file = {"uri": self._cycle.lessons["uri"], "id_field": "record_id"}
        return [*pulled, {"source": spec.feedback_source, "json_lines": file, "may_be_empty": True}]

    async def _clean(self) -> None:
        spec = self._cycle.spec
        # Again: someone may have put another recipe under the name since the cycle was created.
        await self._with_retries(lambda: self._deps.datasets.put(spec.dataset_name, dataset_spec(spec)), "clean")
        pulled_again = ""
        try:
            ended = await self._build_dataset("dataset")
        except _StageFailedError as error:
            if error.failure is None or error.failure.reason != _LOST:
                raise
            logger.warning("%s imports again what the bus has lost: %s", self._cycle.name, error.failure.message)
            pulled_again = await self._resend(error.failure)
            ended = await self._build_dataset("dataset-again")
        version = ended.body
        self._cycle = replace(self._cycle, dataset_version=version)
        train, holdout = int(version.get("train_count", 0)), int(version.get("holdout_count", 0))
        rejected = sum(int(count) for count in version.get("rejected_by_reason", {}).values())
        if not train or not holdout:
            raise _StageFailedError(
                CycleState.FAILED,
                Failure(
                    "EMPTY_DATASET",
                    f"{version['name']} has {train:,} training records and {holdout:,} held-out ones, of "
                    f"{int(version.get('records_in', 0)):,}; check the recipe's filters and the hold-out fraction.",
                    {"dataset_version": str(version["name"])},
                ),
                "no training records" if not train else "nothing held out",
            )
        summary = f"{train:,} for training, {holdout:,} held out, {rejected:,} rejected"
        summary += _of_variants(version) + _of_feedback(version)
        await self._summarize("clean", summary + pulled_again, ended.reused)

    async def _unchanged(self) -> bool:
        """Whether triggers started the cycle, and an earlier one of an equal pipeline learnt from the same data set."""
        version = self._cycle.dataset_version
        if not self._cycle.reasons or version is None:
            return False
        page = partial(self._deps.cycles.page, self._cycle.pipeline, self._cycle.cycle_id, _CYCLES_READ)
        earlier = await self._with_retries(in_thread(page), "clean")
        learnt = (CycleState.SUCCEEDED, CycleState.REJECTED)
        last = next((cycle for cycle in earlier if cycle.state in learnt and cycle.dataset_version is not None), None)
        if last is None or last.dataset_version is None:
            return False
        same = replace(last.spec, triggers=None) == replace(self._cycle.spec, triggers=None)
        return same and last.dataset_version.get("digest") == version.get("digest")

    async def _build_dataset(self, suffix: str) -> Work:
        awaited = [
            {"name": item["name"], **{name: int(item.get(name, 0)) for name in _AWAITED}}
            for item in self._cycle.imports
        ]
        order = {"dataset": self._cycle.spec.dataset_name, "awaited_imports": awaited}
        work = await self._start("clean", self._deps.dataset_versions, order, suffix)
        return await self._follow("clean", self._deps.dataset_versions, work)

    async def _resend(self, lost: Failure) -> str:
        """Pulls those imports again that a failure names; returns words for the stage's summary."""
        imports, sources = list(self._cycle.imports), await self._sources()
        pulled: list[str] = []
        for number, item in enumerate(imports):
            if item["name"] in lost.metadata:
                pulled.append(str(sources[number]["source"]))
                order = {"spec": sources[number], "resend": True}
                work = await self._start("clean", self._deps.imports, order, f"import-{number}-again")
                imports[number] = (await self._follow("clean", self._deps.imports, work)).body
        self._cycle = replace(self._cycle, imports=tuple(imports))
        count = lost.metadata.get("lost_messages", "some")
        return f"; the bus had lost {count} messages, so {', '.join(pulled)} was pulled again"

    async def _train(self) -> None:
        version = self._cycle.dataset_version
        assert version is not None
        reference = {"name": version["name"], "uri": version["uri"], "digest": version["digest"]}
        order = {"spec": {**self._cycle.spec.training, "dataset": reference}}
        work = await self._start("train", self._deps.runs, order, "run")
        ended = await self._follow("train", self._deps.runs, work)
        self._cycle = replace(self._cycle, run=ended.name, report=ended.body["report"])
        found = measured(ended.body["report"])
        before = "" if found.base is None else f"{found.base:.3f} → "
        # Whoever reads the quality must also see what was done differently from the spec.
        warnings = "".join(f"; {warning.rstrip('.')}" for warning in ended.body.get("warnings", []))
        champion = "" if found.champion is None else f" (champion {found.champion:.3f})"
        learnt = "" if found.corrections is None else f"; {found.corrections}"
        words = f"{found.metric} {before}{found.tuned:.3f}{champion}{learnt}{warnings}"
        await self._summarize("train", words, ended.reused)

    async def _gate(self) -> None:
        report = self._cycle.report
        assert report is not None
        verdicts = judge(self._cycle.spec.gate, self._cycle.spec.preference, measured(report))
        self._cycle = replace(self._cycle, verdicts=verdicts)
        passed = [verdict.precision for verdict in verdicts if verdict.passed]
        if not passed:
            raise _StageFailedError(CycleState.REJECTED, None, "no build passed the gate; nothing is published")
        chosen = next(verdict for verdict in verdicts if verdict.chosen)
        await self._summarize("gate", f"{chosen.precision} chosen; passed: {', '.join(passed)}")

    async def _publish(self) -> None:
        report, version = self._cycle.report, self._cycle.dataset_version
        assert report is not None
        assert version is not None
        precision = next(verdict.precision for verdict in self._cycle.verdicts if verdict.chosen)
        build = next(build for build in measured(report).builds if build.precision == precision)
        spec = self._cycle.spec
        # The first version of a model has none beside which it could be introduced.
        beside = spec.plan is not None and bool(await self._serving())
        published = await self._with_retries(
            lambda: self._deps.models.publish(
                spec.model,
                build.uri,
                build.digest,
                self._cycle.run,
                str(version["name"]),
                self._request("publish-beside" if beside else "publish"),
                beside=beside,
            ),
            "publish",
        )
        self._cycle = replace(self._cycle, model_version=published.model_version)
        if beside and await self._serving() != published.model_version:
            await self._roll_out(published, precision)
            return
        await self._with_retries(
            lambda: self._deps.models.promote(self._cycle.run, self._request("promote")), "publish"
        )
        await self._summarize("publish", f"{published.model_version} ({precision})", published.reused)

    async def _serving(self) -> str:
        serving = partial(self._deps.models.serving, self._cycle.spec.model)
        return await self._with_retries(serving, "publish")

    async def _roll_out(self, published: Published, precision: str) -> None:
        """The cycle ends here: a roll-out takes days, and the next cycle may begin meanwhile."""
        cycle, plan = self._cycle, self._cycle.spec.plan
        assert plan is not None
        begin = partial(
            self._deps.rollouts.begin, cycle.name, cycle.spec.model, published.model_version, cycle.run, plan
        )
        rollout = await self._with_retries(begin, "publish")
        shown = self._stage("publish")
        await self._change(replace(shown, resources=(*shown.resources, rollout.name)))
        words = f"{published.model_version} ({precision}), introduced by {rollout.name}"
        if rollout.waits_for:
            words += f" once {rollout.waits_for} has ended"
        await self._summarize("publish", words, published.reused)

    async def _start(self, stage: str, worker: Worker, order: Json, suffix: str) -> Work:
        starting = asyncio.ensure_future(self._with_retries(lambda: worker.start(order, self._request(suffix)), stage))
        try:
            work = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The peer may have accepted the order by now; its work must be known to be cancelled.
            if self._cancel.is_set():
                await asyncio.wait({starting}, timeout=_ORDER_PATIENCE_S)
                if starting.done() and starting.exception() is None:
                    await self._note(stage, starting.result())
            raise
        finally:
            starting.cancel()
        await self._note(stage, work)
        return work

    async def _note(self, stage: str, work: Work) -> None:
        known = self._stage(stage)
        if work.name not in known.resources:
            await self._change(replace(known, resources=(*known.resources, work.name)))

    async def _follow(self, stage: str, worker: Worker, work: Work) -> Work:
        """The work's end; `reused` whether its start or its end says so."""
        latest = work
        backoff = Backoff()
        while not latest.done:
            try:
                async for latest in worker.watch(work.name):
                    backoff.reset()
                    await self._progress(stage, latest.progress)
                if not latest.done:
                    raise UnavailableError(f"Watching {work.name} ended early.")
            except TidemillError as error:
                if not is_retryable(error):
                    raise
                logger.warning("%s waits: %s", self._cycle.name, error.message)
                await self._show_wait(stage, error)
                await self._deps.wakeups.wait(work.name, backoff.next_s())
        if latest.failure is not None:
            raise _StageFailedError(CycleState.FAILED, latest.failure, latest.failure.message)
        if latest.cancelled:
            message = f"{work.name} was cancelled by someone else. Run the pipeline again."
            failure = Failure("WORK_CANCELLED", message, {"resource": work.name})
            raise _StageFailedError(CycleState.FAILED, failure, message)
        return replace(latest, reused=work.reused or latest.reused)

    async def _with_retries(self, do: Callable[[], Awaitable[T]], stage: str = "") -> T:
        """Calls `do` until it returns; while it belongs to a stage, a cancel ends the pause and the stage."""

        async def pause(seconds: float) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._cancel.wait()
                raise _StageFailedError(CycleState.CANCELLED, None, "cancelled while waiting")

        async def show(error: BaseException) -> None:
            await self._show_wait(stage, error)

        if not stage:
            return await call_with_retries_async(do, self._cycle.name)
        return await call_with_retries_async(do, self._cycle.name, sleep=pause, on_wait=show)

    async def _show_wait(self, stage: str, error: BaseException) -> None:
        peer = error.metadata.get("peer") if isinstance(error, TidemillError) else None
        progress: dict[str, object] = {"phase": f"waits for {peer}" if peer else "waits"}
        if isinstance(error, Exception):
            why = Failure.of(error, f"Stage {stage}")
            progress["waiting"] = {"reason": why.reason, "message": why.message}
        await self._progress(stage, progress)

    async def _stop_work(self, stage: str) -> None:
        """Cancels what the stage had started; an unavailable peer does not delay the end of the cycle."""
        for resource in self._stage(stage).resources if stage in self._workers() else ():
            try:
                await self._stop(stage, resource)
            except TidemillError as error:
                logger.warning("%s will be cancelled later: %s", resource, error.message)
                self._left.append((stage, resource))

    async def _stop(self, stage: str, resource: str) -> None:
        """Cancels it, unless it has ended or is gone; raises retryable errors."""
        try:
            request = self._request(f"cancel-{resource.rpartition('/')[2]}")
            await self._worker_of(stage, resource).cancel(resource, request)
        except TidemillError as error:
            if is_retryable(error):
                raise
            logger.info("%s was not cancelled: %s", resource, error.message)

    def _unfinished_work(self) -> list[tuple[str, str]]:
        """Stage and name of the work that an ended cycle may have left."""
        return [
            (stage.name, resource)
            for stage in self._cycle.stages
            if stage.name in self._workers() and stage.state in (StageState.FAILED, StageState.SKIPPED)
            for resource in stage.resources
        ]

    def _workers(self) -> dict[str, Worker]:
        return {"collect": self._deps.imports, "clean": self._deps.dataset_versions, "train": self._deps.runs}

    def _worker_of(self, stage: str, resource: str) -> Worker:
        # Cleaning may have had a source pulled again.
        return self._deps.imports if resource.startswith("imports/") else self._workers()[stage]

    async def _fail(self, stage: str, state: CycleState, failure: Failure | None, summary: str) -> None:
        await self._stop_work(stage)
        now = self._deps.clock.now()
        failed = replace(self._stage(stage), state=StageState.FAILED, end_time=now, progress=None, summary=summary)
        self._cycle = self._cycle.with_stage(failed)
        await self._end(state, failure)

    async def _end(self, state: CycleState, failure: Failure | None = None) -> None:
        self._cycle = self._cycle.ended(state, self._deps.clock.now(), failure)
        await self._save()
        level = logging.ERROR if state is CycleState.FAILED else logging.INFO
        logger.log(level, "%s %s%s", self._cycle.name, state.value, f": {failure.message}" if failure else "")

    async def _progress(self, stage: str, progress: Json | None) -> None:
        self._cycle = self._cycle.with_stage(replace(self._stage(stage), progress=progress))
        if self._deps.clock.monotonic() - self._saved_at >= _PROGRESS_EVERY_S:
            await self._save()

    async def _summarize(self, stage: str, summary: str, reused: bool = False) -> None:
        await self._change(replace(self._stage(stage), summary=summary, reused=reused))

    async def _change(self, stage: Stage) -> None:
        self._cycle = self._cycle.with_stage(stage)
        await self._save()

    async def _save(self) -> None:
        self._saved_at = self._deps.clock.monotonic()
        if not self._cycle.state.final:
            self._cycle = replace(self._cycle, update_time=self._deps.clock.now())
        update = partial(self._deps.cycles.update, self._cycle)
        await call_with_retries_async(in_thread(update), f"the state of {self._cycle.name}")

    def _stage(self, name: str) -> Stage:
        return self._cycle.stage(name)

    def _request(self, what: str) -> str:
        return f"{self._cycle.cycle_id}-{what}"


def dataset_spec(spec: PipelineSpec) -> Json:
    """The spec for cleaning: a pipeline's data set without its name, over the pipeline's sources and its feedback."""
    dataset = {key: value for key, value in spec.dataset.items() if key != "name"}
    if spec.pushed_source_names:
        dataset["pushed_sources"] = list(spec.pushed_source_names)
    if spec.feedback is None:
        return {**dataset, "sources": list(spec.source_names)}
    if (records := spec.feedback.new_label_records) > 0:
        dataset["new_labels"] = {"min_records": records, "min_people": spec.feedback.new_label_people}
    sources = [*spec.source_names, spec.feedback_source]
    return {**dataset, "sources": sources, "feedback_sources": [spec.feedback_source]}


def _of_variants(version: Json) -> str:
    """How many of a data-set version's training records are variants of others, for the summary; empty without any."""
    count = sum(map(int, version.get("variant_counts", {}).values()))
    return f"; {count:,} of those for training are variants" if count else ""


def _of_feedback(version: Json) -> str:
    """What a data-set version holds of feedback, for the summary; empty without feedback."""
    counts = {name: int(count) for name, count in version.get("feedback_counts", {}).items()}
    if not counts:
        return ""
    words = f"; of these {counts.get('correction', 0):,} corrections, {counts.get('accepted', 0):,} accepted answers"
    return f"{words} of {counts.get('people', 0):,} people; {counts.get('held_back', 0):,} held back to measure"
