"""Settings of the cleaning service; read by `__main__` only."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.kit.config import ServiceSettings, home_dir


class CleaningSettings(ServiceSettings):
    """The shared fields and those of cleaning."""

    data_dir: Path = Field(
        default_factory=lambda: home_dir() / "data",
        description="folder of the prepared example data, and of tables of synonyms: `<name>/synonyms.txt`",
    )
    pseudonym_key_file: Path | None = Field(
        None,
        description="file with the secret of pseudonyms in masked texts, 64 hexadecimal digits; keep it: with another "
        "one the same address gets another token; none when unset",
    )
    await_timeout_s: float = Field(
        600.0, gt=0, description="a build fails when no awaited record has arrived for this many seconds"
    )
    lost_patience_s: float = Field(
        30.0,
        gt=0,
        description="the same limit for imports that began before the bus was found to have deleted unread records",
    )
