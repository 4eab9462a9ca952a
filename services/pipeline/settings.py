"""Settings of the pipeline service; read by `__main__` only."""

from __future__ import annotations

from pydantic import Field

from services.kit.config import ServiceSettings


class PipelineSettings(ServiceSettings):
    """The shared fields and those of the pipeline."""

    keep_answers_days: int = Field(30, ge=1, description="days that an answer can be matched with feedback")
