"""The table of topics: partitions, retention, content. Topics are created from it and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_DAY_MS: Final = 24 * 3600 * 1000

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""Largest message of any topic, including headers."""

MAX_VALUE_BYTES: Final = MAX_MESSAGE_BYTES - 64 * 1024
"""Largest value of an event of ours; leaves room for its headers and for those of a dead letter."""


CODEC: Final = "lz4"
"""Compression of messages."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A declared topic; `key` says what its messages are keyed, and so ordered, by.

    `readers` are the groups that must have read a message before it is deleted; see
    `services.kit.bus.retention`.
    """

    name: str
    partitions: int
    retention_ms: int
    key: str
    carries: str
    readers: tuple[str, ...] = ()

    @property
    def configs(self) -> dict[str, str]:
        """Its settings on the broker."""
        return {
            "retention.ms": str(self.retention_ms),
            # By the broker's clock: messages of a producer whose clock is years behind must not be deleted at once.
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(MAX_MESSAGE_BYTES),
            # The broker recompresses messages of foreign producers: our consumers decompress lz4 and gzip only, and a
            # batch in Snappy or zstd would block its partition.
            "compression.type": CODEC,
        }


INBOUND: Final = Topic(
    "tidemill.inbound", 6, 7 * _DAY_MS, "any", "CloudEvents of other producers", ("tidemill-ingest",)
)
RECORDS_RAW: Final = Topic(
    "tidemill.records.raw", 6, 7 * _DAY_MS, "record", "RecordIngested, RecordWithdrawn", ("tidemill-cleaning",)
)
RECORDS_CLEAN: Final = Topic("tidemill.records.clean", 6, 7 * _DAY_MS, "record", "RecordCleaned")
RECORDS_REJECTED: Final = Topic("tidemill.records.rejected", 6, 7 * _DAY_MS, "record", "RecordRejected")
INGEST_EVENTS: Final = Topic("tidemill.ingest.events", 1, 30 * _DAY_MS, "import", "ImportCompleted")
CLEANING_EVENTS: Final = Topic(
    "tidemill.cleaning.events", 1, 30 * _DAY_MS, "data set", "DatasetVersionBuilt, RecordsLost"
)
TRAINING_EVENTS: Final = Topic(
    "tidemill.training.events", 1, 30 * _DAY_MS, "run", "RunSucceeded, RunFailed, RunCancelled"
)
INFERENCE_EVENTS: Final = Topic("tidemill.inference.events", 1, 30 * _DAY_MS, "model", "ModelPublished, RouteChanged")
PREDICTIONS: Final = Topic(
    "tidemill.predictions", 6, 7 * _DAY_MS, "answer", "PredictionServed, PredictionFailed", ("tidemill-pipeline",)
)
ANSWERS_CAPTURED: Final = Topic(
    "tidemill.answers.captured", 6, 7 * _DAY_MS, "answer", "AnswerCaptured, masked", ("tidemill-pipeline",)
)
PIPELINE_EVENTS: Final = Topic("tidemill.pipeline.events", 1, 30 * _DAY_MS, "cycle", "CycleEnded")
FEEDBACK: Final = Topic("tidemill.feedback", 3, 30 * _DAY_MS, "answer", "FeedbackRecorded")
FEEDBACK_INBOUND: Final = Topic(
    "tidemill.feedback.inbound",
    3,
    7 * _DAY_MS,
    "any",
    "feedback of other producers",
    ("tidemill-pipeline",),
)
DEAD_LETTERS: Final = Topic("tidemill.dead-letters", 1, 30 * _DAY_MS, "the message's own", "refused messages")

TOPICS: Final = (
    INBOUND,
    RECORDS_RAW,
    RECORDS_CLEAN,
    RECORDS_REJECTED,
    INGEST_EVENTS,
    CLEANING_EVENTS,
    TRAINING_EVENTS,
    INFERENCE_EVENTS,
    PREDICTIONS,
    ANSWERS_CAPTURED,
    PIPELINE_EVENTS,
    FEEDBACK,
    FEEDBACK_INBOUND,
    DEAD_LETTERS,
)
