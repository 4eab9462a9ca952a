"""The trials of a search as runs of the training service."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from rich.console import Console
from tidemill.cleaning.v1.dataset_pb2 import DatasetVersion
from tidemill.training.v1 import run_pb2
from tidemill.training.v1.training_service_pb2 import CancelRunRequest, CreateTrialRequest, GetRunRequest

from gateway.cli.connection import Connection
from gateway.cli.patience import Patience
from gateway.cli.pipeline_file import PipelineFile
from gateway.cli.search_space import SearchSpace, Values, shown
from gateway.cli.search_trials import Metric, Trial
from services.kit.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError, TidemillError
from services.kit.ids import new_id, sha256_hex

_TIMEOUT_S = 60
_PAUSE_S = 1.0
_SHARE = 0.1
_TOO_LARGE = "MEMORY_TOO_SMALL"
"""The refusal names the batch, whichever value needs the memory."""
_ENDED = (run_pb2.Run.STATE_SUCCEEDED, run_pb2.Run.STATE_FAILED, run_pb2.Run.STATE_CANCELLED)


@dataclass(frozen=True, slots=True)
class TrialRuns:
    """Makes trials as runs of the training service."""

    connection: Connection
    file: PipelineFile
    space: SearchSpace
    version: DatasetVersion
    console: Console

    def make(self, number: int, values: Values, left_s: float | None) -> Trial:
        """See `search_trials.Attempt`. A trial that the service refuses for its values has failed.

        Raises:
            InvalidArgumentError: it refuses something else of the file.
            UnavailableError: the mesh did not answer for too long.
        """
        try:
            run = self._created(values)
        except (InvalidArgumentError, FailedPreconditionError) as error:
            if error.reason != _TOO_LARGE and not self._is_about_values(error):
                raise self._located(error) from error
            return Trial(values, 0.0, why="; ".join(each.description for each in error.violations))
        with self.console.status(f"  {number}: {shown(values)}") as status:

            def show(state: run_pb2.Run) -> None:
                progress = state.progress
                what = f"{progress.phase} {progress.done:,} of {progress.total:,}" if progress.phase else "waits"
                status.update(f"  {number}: {shown(values)}: {what}")

            ended, over = self._ended(run, left_s, show)
        seconds = _seconds(ended)
        if ended.state == run_pb2.Run.STATE_SUCCEEDED:
            return Trial(values, seconds, _measured(ended), ended.name)
        if ended.state == run_pb2.Run.STATE_FAILED:
            return Trial(values, seconds, run=ended.name, why=ended.failure.message)
        if over and left_s is not None:
            why = "the time of the search was over"
            return Trial(values, max(seconds, left_s), run=ended.name, why=why, cut=True)
        return Trial(values, seconds, run=ended.name, why="it was cancelled")

    def _created(self, values: Values) -> run_pb2.Run:
        """A run of these values: a new one, one that is under way, or one that has succeeded."""
        spec = self.space.spec(values)
        spec.dataset.name, spec.dataset.uri = self.version.name, self.version.uri
        spec.dataset.digest = self.version.digest
        # Nothing is built, and trials of equal values must be equal specs.
        spec.compression.Clear()
        spec.compression.variants.append("fp32")
        request = CreateTrialRequest(spec=spec)
        request.trial.study = self.file.spec.name
        request.trial.validation_share = self.file.spec.search.validation_share or _SHARE
        # By its content, so that a search that is made again knows its own run, which it may cancel.
        request.request_id = "tune-" + sha256_hex(request.SerializeToString(deterministic=True))
        run = self._create(request)
        if run.state in (run_pb2.Run.STATE_FAILED, run_pb2.Run.STATE_CANCELLED):
            # Of an earlier search: what was in its way may be gone.
            request.request_id = new_id()
            run = self._create(request)
        return run

    def _create(self, request: CreateTrialRequest) -> run_pb2.Run:
        with self.connection.errors():
            answer = self.connection.training.CreateTrial(
                request, metadata=self.connection.metadata, timeout=_TIMEOUT_S
            )
        run: run_pb2.Run = answer.run
        return run

    def _ended(
        self, run: run_pb2.Run, left_s: float | None, show: Callable[[run_pb2.Run], None]
    ) -> tuple[run_pb2.Run, bool]:
        """The run when it has ended or the time is over, and whether it is; then it is cancelled unless others wait."""
        began, before = time.monotonic(), _seconds(run)
        patience, over = Patience(f"tidemill tune {self.file.path}"), False
        while run.state not in _ENDED:
            show(run)
            if not over and left_s is not None and before + time.monotonic() - began >= left_s:
                over = True
                if run.reused:
                    # It is also someone else's, who may wait for it.
                    return run, over
                self._cancel(run)
            time.sleep(_PAUSE_S)
            try:
                reused = run.reused
                request = GetRunRequest(name=run.name)
                run = self.connection.training.GetRun(
                    request, metadata=self.connection.metadata, timeout=_TIMEOUT_S
                ).run
                run.reused = reused
                patience.restored()
            except grpc.RpcError as error:
                patience.failed(error)
        return run, over

    def _cancel(self, run: run_pb2.Run) -> None:
        with self.connection.errors():
            self.connection.training.CancelRun(
                CancelRunRequest(request_id=new_id(), name=run.name),
                metadata=self.connection.metadata,
                timeout=_TIMEOUT_S,
            )

    def _is_about_values(self, error: TidemillError) -> bool:
        searched = {f"spec.{each.name}" for each in self.space.ranges}
        return bool(error.violations) and all(each.field in searched for each in error.violations)

    def _located(self, error: TidemillError) -> TidemillError:
        found = [FieldViolation(f"training.{v.field.removeprefix('spec.')}", v.description) for v in error.violations]
        wrong = InvalidArgumentError(error.message, reason=error.reason, violations=found)
        return self.file.locate(wrong) if found else error


def _measured(run: run_pb2.Run) -> Metric:
    """What judges a trial: of a writer its loss, which is less noisy than what it writes; else the task's metric."""
    writes = run.report.HasField("tuned_loss")
    found = run.report.tuned_loss if writes else run.report.tuned
    return Metric(found.name, found.value, found.ci_low, found.ci_high, found.sample_size, lower_is_better=writes)


def _seconds(run: run_pb2.Run) -> float:
    return (run.update_time.ToNanoseconds() - run.create_time.ToNanoseconds()) / 1e9
