"""Settings of the cleaning service; read by `__main__` only."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from services.kit.config import ServiceSettings, home_dir, split_list
from services.kit.network_rules import NetworkRules


class CleaningSettings(ServiceSettings):
    """The shared fields and those of cleaning."""

    data_dir: Path = Field(
        default_factory=lambda: home_dir() / "data",
        description="folder of the prepared example data, of tables of synonyms (`<name>/synonyms.txt`) and of models "
        "that translate (`<name>/config.json`)",
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
    augment_hosts: str = Field(
        "",
        description="hosts, addresses and networks (separated by commas; host:port, 10.0.0.0/8:9000, 127.0.0.1:*) that "
        "augmenters may ask models at; no text is sent to others. Their keys are variables that begin with "
        "TIDEMILL_AUGMENT_KEY_",
    )
    augment_calls: int = Field(2, ge=1, le=64, description="calls of augmenters to models that are under way at a time")
    augment_timeout_s: float = Field(120.0, gt=0, description="an augmenter's call to a model ends after this long")
    augment_patience_s: float = Field(
        600.0, gt=0, description="a build fails when a model that its augmenters ask is unavailable for this long"
    )

    @field_validator("augment_hosts")
    @classmethod
    def _hosts(cls, value: str) -> str:
        NetworkRules(split_list(value))
        return value
