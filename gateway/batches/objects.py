"""Files and batches as callers see them, and as they are kept.

Sources: https://platform.openai.com/docs/api-reference/files and https://platform.openai.com/docs/api-reference/batch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

KEEP_S = 30 * 86400
"""Seconds that a file is kept unless its creator says otherwise, and a batch after its end."""
SHORTEST_S = 3600
WINDOW_S = 86400
"""Seconds after which what a batch has not answered expires."""


class FileObject(BaseModel):
    """A file: the requests of a batch, or its answers."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"


class RequestCounts(BaseModel):
    """How far a batch is."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchError(BaseModel):
    """Why a batch failed; `line` of its file, from 1."""

    code: str
    line: int | None = None
    message: str
    param: str | None = None


class BatchErrors(BaseModel):
    """Why a batch failed."""

    object: Literal["list"] = "list"
    data: list[BatchError]


Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
ENDED: frozenset[Status] = frozenset({"failed", "completed", "expired", "cancelled"})


class Batch(BaseModel):
    """A batch. Times are seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: Status = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    metadata: dict[str, str] | None = None


class StoredBatch(BaseModel):
    """A batch with what its callers do not see."""

    batch: Batch
    key_id: str
    """Of the API key that made it, by whose rights it is answered; empty where no keys are required."""
    output_s: int
    """Seconds that its answers are kept."""
    end: Status | None = None
    """The state that it takes when its files are in place."""
