"""Create, read, cancel and promote runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from services.kit.clock import Clock
from services.kit.errors import (
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    not_found,
    request_id_reused,
)
from services.kit.ids import new_id
from services.training.app.ports import Artifacts, BaseModels, MachineView, Registry, RunStore
from services.training.domain.machine import Machine
from services.training.domain.run import Run, RunState
from services.training.domain.training_spec import TrainingSpec
from services.training.engine.run_plan import RunPlan, plan_run

logger = logging.getLogger(__name__)


class Runs:
    """Use cases on runs. Thread-safe."""

    def __init__(
        self,
        store: RunStore,
        models: BaseModels,
        artifacts: Artifacts,
        registry: Registry,
        machine: MachineView,
        clock: Clock,
        uri_of: Callable[[str], str],
        cluster: MachineView | None = None,
    ) -> None:
        """`cluster`: where trainings of several processes are done; on the machine when None."""
        self._store, self._models, self._artifacts = store, models, artifacts
        self._registry, self._machine, self._cluster = registry, machine, cluster
        self._clock, self._uri_of = clock, uri_of
        self._creating = threading.Lock()

    def create(self, spec: TrainingSpec, request_id: str, traceparent: str) -> Run:
        """Queues a run, unless an existing one can be returned.

        That is the run of the same request id, or one with the same digest that succeeded or is under way. All callers
        of a run that is under way share it: a cancellation ends it for all of them.

        The spec is checked against its base model and data set here, not minutes later by the worker.

        Raises:
            InvalidArgumentError: the base model or the data set does not fit the spec, with the field; or the request
                id belongs to another run.
            NotFoundError, FailedPreconditionError: the base model or data set does not exist or cannot be used,
                or the machine has too little memory for the run.
        """
        known = self._store.by_request(request_id) if request_id else None
        if known is not None:
            return _same(known, spec)
        base = self._models.find(spec.base_model)
        spec.check_base(base)
        digest = spec.digest(base.identity)
        earlier = self._store.succeeded(digest)
        if earlier is not None and self._has_good_builds(earlier):
            return replace(earlier, reused=True)
        self._artifacts.check_dataset(spec)
        self._admit(spec)
        # Of two equal requests at the same time, the second one finds the first one's run.
        with self._creating:
            joined = self._store.under_way(digest)
            if joined is not None:
                return joined if request_id and joined.request_id == request_id else replace(joined, reused=True)
            run_id, now = new_id(), self._clock.now()
            return self._store.create(
                Run(
                    f"runs/{run_id}",
                    spec,
                    digest,
                    self._uri_of(run_id),
                    now,
                    now,
                    request_id=request_id,
                    traceparent=traceparent,
                )
            )

    def plan(self, spec: TrainingSpec, devices: int = 0, device_bytes: int = 0) -> RunPlan:
        """The memory that a run needs, before anything is loaded.

        Args:
            spec: what is trained; its data set is not looked at.
            devices: number of devices of another machine; this machine's when zero.
            device_bytes: memory of each of them; this machine's when zero.

        Raises:
            NotFoundError: the base model does not exist.
            InvalidArgumentError: the base model or the method cannot be planned.
            FailedPreconditionError, UnavailableError: the cluster that would train it cannot be used.
        """
        if devices and device_bytes:
            machine = Machine("cuda", device_bytes, devices, half=True)
        else:
            machine = self._look(spec)
            if devices or device_bytes:
                # On another machine a device is a GPU.
                machine = Machine("cuda", device_bytes or machine.memory_bytes, devices or machine.devices, half=True)
        return self._plan(spec, machine)

    def _look(self, spec: TrainingSpec) -> Machine:
        """What trains the spec."""
        view = self._machine if self._cluster is None or spec.processes == 1 else self._cluster
        return view.look()

    def _plan(self, spec: TrainingSpec, machine: Machine) -> RunPlan:
        return plan_run(spec, self._models.config(spec.base_model), machine)

    def _admit(self, spec: TrainingSpec) -> None:
        """Refuses a run that the machine has too little memory for: it would be killed in the middle of its work."""
        machine = self._look(spec)
        if spec.processes > max(1, machine.max_processes):
            most = machine.max_processes
            nearest = f"name {most}" if most > 1 else "leave strategy and processes out"
            wrong = f"{spec.processes} processes need one each, and there {machine.counted}: {nearest}"
            raise FailedPreconditionError(
                f"spec.processes: {wrong}.",
                reason="DEVICES_MISSING",
                metadata={"processes": str(spec.processes), "max_processes": str(most)},
                violations=[FieldViolation("spec.processes", wrong)],
            )
        try:
            plan = self._plan(spec, machine)
        except InvalidArgumentError as error:
            logger.warning("a run of %s is admitted without a memory plan: %s", spec.base_model, error.message)
            return
        chosen = plan.chosen
        if chosen.fits:
            return
        needed, there = chosen.total / 1e9, plan.machine.memory_bytes / 1e9
        each = f" for each of its {chosen.devices} processes" if chosen.devices > 1 else ""
        wrong = f"the run needs about {needed:.1f} GB of memory{each}, and there are {there:.1f} GB: {plan.nearest}"
        raise FailedPreconditionError(
            f"spec.optimization.batch_size: {wrong}. `tidemill plan` shows what takes it.",
            reason="MEMORY_TOO_SMALL",
            metadata={"needed_bytes": str(chosen.total), "memory_bytes": str(plan.machine.memory_bytes)},
            violations=[FieldViolation("spec.optimization.batch_size", wrong)],
        )

    def _has_good_builds(self, run: Run) -> bool:
        """Whether all builds of a run exist and are undamaged; otherwise the run cannot be reused."""
        if run.report is None:
            return False
        for variant in run.report.variants:
            try:
                self._artifacts.check_build(variant.uri, variant.digest)
            except (NotFoundError, FailedPreconditionError) as error:
                logger.warning("%s is not reused, it is trained again: %s", run.name, error.message)
                return False
        return True

    def get(self, name: str) -> Run:
        """The run.

        Raises:
            NotFoundError: it does not exist.
        """
        run = self._store.get(name)
        if run is None:
            raise not_found("run", name)
        return run

    def page(self, before: str, limit: int) -> Sequence[Run]:
        """Runs older than the given one, newest first."""
        return self._store.page(before, limit)

    def cancel(self, name: str) -> Run:
        """Asks a run to stop; an ended run stays unchanged."""
        if not self.get(name).state.final:
            self._store.request_cancel(name)
        return self.get(name)

    def promote(self, name: str) -> Run:
        """Makes the run's model the champion of the registry.

        Raises:
            FailedPreconditionError: the run did not succeed, or is a trial.
            UnavailableError: the registry does not answer.
        """
        run = self.get(name)
        if run.state is not RunState.SUCCEEDED:
            raise FailedPreconditionError(
                f"{name} is {run.state.value}; only a succeeded run can be promoted.",
                reason="RUN_NOT_SUCCEEDED",
                metadata={"run": name},
            )
        if run.spec.trial is not None:
            raise FailedPreconditionError(
                f"{name} is a trial of {run.spec.trial.study}, which has no builds; train its values as a run.",
                reason="RUN_IS_TRIAL",
                metadata={"run": name},
            )
        if not run.model_version:
            # The registry was unavailable when the run ended.
            warnings = run.report.warnings if run.report else ()
            run = replace(run, model_version=self._registry.register(run), warnings=warnings)
            self._store.update(run)
        self._registry.promote(run.model_version)
        self._store.mark_promoted(name, self._clock.now())
        return run


def _same(known: Run, spec: TrainingSpec) -> Run:
    """The run of a repeated request."""
    if known.spec != spec:
        raise request_id_reused(known.request_id, "run", run=known.name)
    return known
