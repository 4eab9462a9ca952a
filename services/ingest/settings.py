"""Settings of the ingest service; read by `__main__` only."""

from __future__ import annotations

from pydantic import Field

from services.kit.config import ServiceSettings


class IngestSettings(ServiceSettings):
    """The shared fields and those of ingest."""

    request_retention_s: float = Field(
        86_400.0, gt=0, description="for so many seconds a repeated batch is recognised by its request_id"
    )
    concurrent_imports: int = Field(2, ge=1, le=16, description="imports that are pulled side by side")
    compared_source_bytes: int = Field(
        512 * 1024 * 1024,
        ge=0,
        description="a source up to this size is hashed before CreateImport answers, to find an earlier import of the"
        " same content; a larger one is compared by its store's ETags, or pulled anew where it has none",
    )
