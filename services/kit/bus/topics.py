"""The one table of topics: partitions, retention, what they carry. They are created from it, nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_DAY_MS: Final = 24 * 3600 * 1000

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""What every topic takes, headers and all."""

MAX_VALUE_BYTES: Final = MAX_MESSAGE_BYTES - 64 * 1024
"""What an event of ours may hold, so that its headers, and those of a dead letter of it, have room."""


CODEC: Final = "lz4"
"""What messages are packed in."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A declared topic; `key` says by what its messages are keyed and so ordered.

    `readers` are the groups that must have read a message before it is deleted, once they run; see
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
        """Its settings at the broker."""
        return {
            "retention.ms": str(self.retention_ms),
            # By the broker's clock: a producer whose own is years behind must not have its messages deleted at once.
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(MAX_MESSAGE_BYTES),
            # The broker repacks what a foreign producer packs otherwise: our consumers unpack lz4 and gzip only, and a
            # batch of Snappy or zstd would hold up its partition.
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
CLEANING_EVENTS: Final = Topic("tidemill.cleaning.events", 1, 30 * _DAY_MS, "data set", "DatasetVersionBuilt")
TRAINING_EVENTS: Final = Topic(
    "tidemill.training.events", 1, 30 * _DAY_MS, "run", "RunSucceeded, RunFailed, RunCancelled"
)
INFERENCE_EVENTS: Final = Topic("tidemill.inference.events", 1, 30 * _DAY_MS, "model", "ModelPublished")
PREDICTIONS: Final = Topic("tidemill.predictions", 6, 7 * _DAY_MS, "answer", "PredictionServed", ("tidemill-pipeline",))
PIPELINE_EVENTS: Final = Topic("tidemill.pipeline.events", 1, 30 * _DAY_MS, "cycle", "CycleEnded")
FEEDBACK: Final = Topic("tidemill.feedback", 3, 30 * _DAY_MS, "answer", "FeedbackRecorded")
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
    PIPELINE_EVENTS,
    FEEDBACK,
    DEAD_LETTERS,
)
