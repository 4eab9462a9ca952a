"""Drives runs to their end: one worker at a time, found again after a restart, started again after a crash."""

from __future__ import annotations

import logging
from dataclasses import replace

from services.kit.clock import Clock
from services.kit.errors import TidemillError, is_retryable
from services.training.app.ports import Announcer, Registry, RunStore, Workers
from services.training.domain.run import Failure, Run, RunState

logger = logging.getLogger(__name__)
_MAX_ATTEMPTS = 5


class Supervision:
    """`step` looks at every unfinished run once."""

    def __init__(
        self, store: RunStore, workers: Workers, registry: Registry, announcer: Announcer, clock: Clock
    ) -> None:
        self._store, self._workers, self._registry = store, workers, registry
        self._announcer, self._clock = announcer, clock

    def step(self) -> None:
        """Moves each run on as far as it goes now; one run has the machine at a time."""
        busy = False
        for run in self._store.unfinished():
            if run.state.final:
                self._tell(run)
            elif run.state is RunState.RUNNING:
                busy = not self._follow(run).state.final or busy
            elif run.cancel_requested:
                self._end(replace(run, state=RunState.CANCELLED))
            elif not busy:
                busy = not self._start(run).state.final

    def pause(self) -> None:
        """Tells every worker to store a checkpoint and end; the runs go on with the next start of the service."""
        for run in self._store.unfinished():
            if run.state is RunState.RUNNING:
                self._workers.stop(run)

    def _start(self, run: Run) -> Run:
        if run.attempts >= _MAX_ATTEMPTS:
            message = f"The worker ended {run.attempts} times without a result; see its log in {run.uri}."
            return self._end(replace(run, state=RunState.FAILED, failure=Failure("WORKER_CRASHED", message)))
        started = replace(run, state=RunState.RUNNING, attempts=run.attempts + 1, update_time=self._clock.now())
        # Stored first: after a crash in between, the worker is looked for and, not found, started.
        self._store.update(started)
        try:
            self._workers.start(started)
        except TidemillError as error:
            if is_retryable(error):
                raise
            return self._end(
                replace(started, state=RunState.FAILED, failure=Failure(error.reason, error.message, error.metadata))
            )
        return started

    def _follow(self, run: Run) -> Run:
        view = self._workers.view(run)
        if view.progress is not None and view.progress != run.progress:
            run = replace(run, progress=view.progress, update_time=self._clock.now())
            self._store.update(run)
        if view.alive:
            if run.cancel_requested:
                self._workers.stop(run)
            return run
        if view.report is not None:
            version = self._registry.register(replace(run, report=view.report))
            return self._end(replace(run, state=RunState.SUCCEEDED, report=view.report, model_version=version))
        if view.failure is not None:
            return self._end(replace(run, state=RunState.FAILED, failure=view.failure))
        if run.cancel_requested:
            return self._end(replace(run, state=RunState.CANCELLED))
        logger.warning("the worker of %s is gone; it is started again from what it kept", run.name)
        return self._start(run)

    def _end(self, run: Run) -> Run:
        run = replace(run, update_time=self._clock.now())
        self._store.update(run)
        self._tell(run)
        return run

    def _tell(self, run: Run) -> None:
        self._announcer.ended(run)
        self._store.update(replace(run, announced=True))
