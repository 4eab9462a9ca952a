"""Converts the kit's own types into the messages that several contracts share."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from tidemill.common.v1 import failure_pb2

from services.kit.failure import Failure
from services.kit.progress import Progress


def timestamp(moment: datetime) -> Timestamp:
    """The moment as a message."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def failure_to(failure: Failure | None) -> failure_pb2.Failure | None:
    """A failure as a message."""
    if failure is None:
        return None
    return failure_pb2.Failure(reason=failure.reason, message=failure.message, metadata=failure.metadata)


def progress_to(progress: Progress | None) -> failure_pb2.Progress | None:
    """Progress as a message; the time left is set if it is known or follows from total and rate."""
    if progress is None:
        return None
    message = failure_pb2.Progress(
        phase=progress.phase,
        done=progress.done,
        total=progress.total,
        unit=progress.unit,
        rate=progress.rate,
        figures=progress.figures,
        waiting=failure_to(progress.waiting),
    )
    remaining_s = progress.remaining_s
    if remaining_s is None and progress.rate > 0 and progress.total > 0:
        remaining_s = max(0, progress.total - progress.done) / progress.rate
    if remaining_s is not None:
        message.remaining.FromNanoseconds(int(remaining_s * 1e9))
    if progress.update_time is not None:
        message.update_time.CopyFrom(timestamp(progress.update_time))
    return message
