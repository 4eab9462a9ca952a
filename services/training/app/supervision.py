"""Executes runs, one worker at a time: adopts it after a restart of the service, restarts it after a crash."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from datetime import datetime, timedelta

from services.kit.clock import Clock
from services.kit.errors import TidemillError, explained, is_retryable
from services.kit.failure import Failure
from services.kit.progress import Progress
from services.training.app.ports import Announcer, Registry, RunStore, Workers
from services.training.domain.run import Run, RunState

logger = logging.getLogger(__name__)
_MAX_ATTEMPTS = 5
# Pauses between attempts to register, in seconds; after the last, a run succeeds without a version.
_REGISTRY_PAUSES_S = (1.0, 2.0, 4.0, 8.0)


class Supervision:
    """Supervises runs; `step` checks every unfinished run once."""

    def __init__(
        self, store: RunStore, workers: Workers, registry: Registry, announcer: Announcer, clock: Clock
    ) -> None:
        self._store, self._workers, self._registry = store, workers, registry
        self._announcer, self._clock = announcer, clock
        # A step that runs when the service stops must not overwrite what `pause` stores.
        self._lock = threading.Lock()
        self._paused = False
        # By run: failed registrations, and when to retry.
        self._refusals: dict[str, tuple[int, datetime]] = {}

    def step(self) -> None:
        """Advances each run as far as possible; one run uses the machine at a time.

        Raises:
            TidemillError: a dependency of all runs is unavailable, such as the database or the bus.
        """
        with self._lock:
            busy = False
            for run in self._store.unfinished() if not self._paused else ():
                try:
                    busy = self._advance(run, busy) or busy
                except Exception as error:
                    known = explained(error)
                    if known is not None and is_retryable(known):
                        raise known from error
                    # An unexpected error of one run must not stop the supervision of the others.
                    logger.exception("supervision of %s failed", run.name)
                    failure = Failure("SUPERVISION_FAILED", f"{type(error).__name__}: {error}")
                    self._end(replace(run, state=RunState.FAILED, failure=failure))

    def pause(self) -> None:
        """Asks every worker to store a checkpoint and exit; the runs resume at the next start of the service.

        This does not count as a failed attempt: at the next start the worker is seen to have been stopped.
        """
        with self._lock:
            self._paused = True
            for run in self._store.unfinished():
                if run.state is RunState.RUNNING:
                    self._workers.stop(run)

    def _advance(self, run: Run, busy: bool) -> bool:
        """Advances one run; returns whether it uses the machine now."""
        if run.state.final:
            self._announce(run)
            return False
        if run.state is RunState.RUNNING:
            return not self._follow(run).state.final
        if run.cancel_requested:
            self._end(replace(run, state=RunState.CANCELLED))
            return False
        return not busy and not self._start(run).state.final

    def _start(self, run: Run, ending: str = "") -> Run:
        if run.attempts >= _MAX_ATTEMPTS:
            message = f"The worker ended {run.attempts} times without a result; see its log in {run.uri}. {ending}"
            return self._end(replace(run, state=RunState.FAILED, failure=Failure("WORKER_CRASHED", message.strip())))
        now = self._clock.now()
        progress = None if run.progress is None else replace(run.progress, waiting=None)
        started = replace(run, state=RunState.RUNNING, attempts=run.attempts + 1, update_time=now, progress=progress)
        # Stored before the worker starts: after a crash in between, the worker is missing and is started again.
        self._store.update(started)
        try:
            champion = self._store.champion(run.spec.model_name) if run.spec.trial is None else None
            self._workers.start(started, champion)
        except Exception as error:
            known = explained(error)
            if known is None:
                raise
            if is_retryable(known):
                # The worker did not start, so this was not an attempt.
                waiting = replace(run.progress or Progress("start"), waiting=Failure.of(known, "The start of the run"))
                self._store.update(replace(run, update_time=now, progress=waiting))
                raise known from error
            return self._end(replace(started, state=RunState.FAILED, failure=Failure.of(known, "The start of the run")))
        self._registry.prepare()
        return started

    def _follow(self, run: Run) -> Run:
        view = self._workers.view(run)
        progress, curve = view.progress or run.progress, view.loss_curve or run.loss_curve
        if (progress, curve) != (run.progress, run.loss_curve):
            run = replace(run, progress=progress, loss_curve=curve, update_time=self._clock.now())
            self._store.update(run)
        if view.alive:
            if run.cancel_requested:
                self._workers.stop(run)
            return run
        if view.report is not None:
            return self._register(replace(run, report=view.report, warnings=view.report.warnings))
        if view.failure is not None:
            return self._end(replace(run, state=RunState.FAILED, failure=view.failure))
        if run.cancel_requested:
            return self._end(replace(run, state=RunState.CANCELLED))
        if view.stopped:
            # Stopping a machine or container signals the workers, too, perhaps before this service.
            logger.info("the worker of %s was stopped; it resumes from its checkpoint", run.name)
            return self._start(replace(run, attempts=max(0, run.attempts - 1)))
        logger.warning("the worker of %s is gone; restarting it from its last checkpoint. %s", run.name, view.ending)
        return self._start(run, view.ending)

    def _register(self, run: Run) -> Run:
        """Ends a run that has its report. If the registry refuses the model, the run only gets a warning."""
        refusals, retry_at = self._refusals.get(run.name, (0, self._clock.now()))
        if self._clock.now() < retry_at:
            return run
        try:
            version, warnings = self._registry.register(run), run.warnings
        except TidemillError as error:
            logger.warning("%s", error.message)
            if refusals < len(_REGISTRY_PAUSES_S):
                pause = timedelta(seconds=_REGISTRY_PAUSES_S[refusals])
                self._refusals[run.name] = (refusals + 1, self._clock.now() + pause)
                return run
            version = ""
            warnings = (*run.warnings, f"The model is not registered: {error.message} Promoting it registers it.")
        self._refusals.pop(run.name, None)
        return self._end(replace(run, state=RunState.SUCCEEDED, model_version=version, warnings=warnings))

    def _end(self, run: Run) -> Run:
        run = replace(run, update_time=self._clock.now())
        self._store.update(run)
        self._announce(run)
        return run

    def _announce(self, run: Run) -> None:
        self._announcer.ended(run)
        # Not the whole run: a promotion may have added its model version while the bus was slow.
        self._store.mark_announced(run.name)
