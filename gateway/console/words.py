"""States and names as people read them, and the tone that goes with a state."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from tidemill.cleaning.v1.dataset_pb2 import DatasetVersion
from tidemill.inference.v1.model_pb2 import ModelVersion
from tidemill.pipeline.v1.cycle_pb2 import Cycle, Stage
from tidemill.pipeline.v1.rollout_pb2 import ModelRollout
from tidemill.pipeline.v1.trigger_pb2 import Trigger
from tidemill.training.v1.run_pb2 import Run

from gateway.formats import Status, duration

_CYCLE = {
    Cycle.STATE_RUNNING: Status("running", "busy"),
    Cycle.STATE_SUCCEEDED: Status("published", "good"),
    Cycle.STATE_FAILED: Status("failed", "bad"),
    Cycle.STATE_CANCELLED: Status("cancelled", "idle"),
    Cycle.STATE_REJECTED: Status("rejected by the gate", "warn"),
    Cycle.STATE_UNCHANGED: Status("nothing new", "idle"),
}
_STAGE = {
    Stage.STATE_PENDING: Status("pending", "idle"),
    Stage.STATE_RUNNING: Status("running", "busy"),
    Stage.STATE_SUCCEEDED: Status("done", "good"),
    Stage.STATE_FAILED: Status("failed", "bad"),
    Stage.STATE_SKIPPED: Status("skipped", "idle"),
}
_ROLLOUT = {
    ModelRollout.STATE_PENDING: Status("pending", "idle"),
    ModelRollout.STATE_RUNNING: Status("running", "busy"),
    ModelRollout.STATE_AWAITING_APPROVAL: Status("awaits approval", "warn"),
    ModelRollout.STATE_PROMOTED: Status("promoted", "good"),
    ModelRollout.STATE_ROLLED_BACK: Status("rolled back", "bad"),
}
_RUN = {
    Run.STATE_QUEUED: Status("queued", "idle"),
    Run.STATE_RUNNING: Status("running", "busy"),
    Run.STATE_SUCCEEDED: Status("succeeded", "good"),
    Run.STATE_FAILED: Status("failed", "bad"),
    Run.STATE_CANCELLED: Status("cancelled", "idle"),
}
_VERSION = {
    ModelVersion.STATE_LOADING: Status("loading", "busy"),
    ModelVersion.STATE_SERVING: Status("in the route", "good"),
    ModelVersion.STATE_RETIRED: Status("retired", "idle"),
    ModelVersion.STATE_FAILED: Status("failed", "bad"),
}
_DATASET = {
    DatasetVersion.STATE_BUILDING: Status("building", "busy"),
    DatasetVersion.STATE_READY: Status("ready", "good"),
    DatasetVersion.STATE_FAILED: Status("failed", "bad"),
    DatasetVersion.STATE_CANCELLED: Status("cancelled", "idle"),
}
_PART = {
    "serving": Status("serving", "good"),
    "not_serving": Status("not serving", "warn"),
    "unavailable": Status("does not answer", "bad"),
}
_UNKNOWN = Status("unknown", "idle")


def cycle_status(cycle: Cycle) -> Status:
    """Of a cycle."""
    return _CYCLE.get(cycle.state, _UNKNOWN)


def stage_status(stage: Stage) -> Status:
    """Of a stage."""
    return _STAGE.get(stage.state, _UNKNOWN)


def rollout_status(rollout: ModelRollout) -> Status:
    """Of a roll-out; one that is frozen says so."""
    status = _ROLLOUT.get(rollout.state, _UNKNOWN)
    ended = rollout.state in (ModelRollout.STATE_PROMOTED, ModelRollout.STATE_ROLLED_BACK)
    return Status(f"{status.word}, frozen", "warn") if rollout.frozen and not ended else status


def run_status(run: Run) -> Status:
    """Of a run."""
    return _RUN.get(run.state, _UNKNOWN)


def version_status(version: ModelVersion) -> Status:
    """Of a published version."""
    return _VERSION.get(version.state, _UNKNOWN)


def dataset_status(version: DatasetVersion) -> Status:
    """Of a data-set version."""
    return _DATASET.get(version.state, _UNKNOWN)


def part_status(status: str) -> Status:
    """Of a service, as its health check answered."""
    return _PART.get(status, _UNKNOWN)


def trigger_status(trigger: Trigger) -> Status:
    """Of a pipeline's triggers."""
    if trigger.paused:
        return Status("paused", "warn")
    if not any(check.met for check in trigger.checks):
        return Status("waits", "idle")
    return Status("held", "warn") if trigger.holds else Status("due", "busy")


def instant(stamp: Timestamp) -> datetime:
    """A timestamp in UTC."""
    return stamp.ToDatetime(UTC)


def ago(stamp: Timestamp, now: datetime) -> str:
    """`just now`, `4 min ago`, `3 h ago`, `12 d ago`; `in 5 min` for what is to come."""
    seconds = (now - instant(stamp)).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if abs(seconds) >= size * (2 if unit == "d" else 1):
            count = int(abs(seconds) // size)
            return f"{count} {unit} ago" if seconds > 0 else f"in {count} {unit}"
    return "just now"


def lasted(start: Timestamp, end: Timestamp) -> str:
    """The time between two moments."""
    return duration((end.ToNanoseconds() - start.ToNanoseconds()) / 1e9)


def short(name: str) -> str:
    """A resource's name without the collection that it begins with: `headlines/versions/3`."""
    return name.partition("/")[2] or name


def last(name: str) -> str:
    """The last part of a resource's name."""
    return name.rpartition("/")[2]
