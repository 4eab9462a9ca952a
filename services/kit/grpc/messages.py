"""What several contracts share, between messages and the kit's own types."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from tidemill.common.v1 import failure_pb2

from services.kit.failure import Failure


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
