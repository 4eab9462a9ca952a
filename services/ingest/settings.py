"""Settings of the ingest service; read by `__main__` only."""

from __future__ import annotations

from pydantic import Field, field_validator

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
    source_roots: str = Field(
        "",
        description="folders, as absolute paths or URLs with commas between them, below which imports may read; "
        "anything that the process may read when empty",
    )

    @field_validator("source_roots")
    @classmethod
    def _absolute(cls, value: str) -> str:
        for root in split_roots(value):
            if not root.startswith("/") and "://" not in root:
                raise ValueError(f"{root!r} is neither an absolute path nor a URL")
        return value


def split_roots(text: str) -> list[str]:
    """The folders of `source_roots`."""
    return [root.strip() for root in text.split(",") if root.strip()]
