"""Bodies of `/v1/batches` and `/v1/files`.

Sources: https://platform.openai.com/docs/api-reference/batch and https://platform.openai.com/docs/api-reference/files.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, model_validator

from gateway.batches.objects import KEEP_S, SHORTEST_S, Batch, FileObject
from gateway.http.bodies import Body

MAX_PAGE = 100


class ExpiresAfterBody(Body):
    """When a file expires."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=SHORTEST_S, le=KEEP_S)


class BatchBody(Body):
    """A new batch."""

    input_file_id: str = Field(max_length=64, description="a file that was uploaded for the purpose `batch`")
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/predict"]
    completion_window: Literal["24h"] = Field(description="requests that are not answered by then expire")
    metadata: (
        dict[
            Annotated[str, StringConstraints(max_length=64)],
            Annotated[str, StringConstraints(max_length=512)],
        ]
        | None
    ) = Field(None, max_length=16)
    output_expires_after: ExpiresAfterBody | None = Field(None, description="30 days when left out")


class UploadBody(Body):
    """The fields of an upload beside its file."""

    purpose: Literal["batch"]
    expires_after: ExpiresAfterBody | None = Field(None, description="30 days when left out")

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, value: Any) -> Any:
        """Forms write an object's fields as `expires_after[seconds]`, and numbers as texts."""
        found = {name: item for name, item in value.items() if not name.startswith("expires_after[")}
        inner: dict[str, Any] = {
            name.removeprefix("expires_after[").removesuffix("]"): item
            for name, item in value.items()
            if name.startswith("expires_after[")
        }
        if isinstance(seconds := inner.get("seconds"), str) and seconds.isascii() and seconds.isdigit():
            inner["seconds"] = int(seconds)
        return {**found, "expires_after": inner} if inner else found


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """A file that was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class BatchList(BaseModel):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
