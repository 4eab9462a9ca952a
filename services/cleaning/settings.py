"""Settings of the cleaning service; read by `__main__` only."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from services.cleaning.domain.originals import OriginalsPolicy
from services.kit.bus.topics import RECORDS_RAW
from services.kit.config import ServiceSettings, home_dir, split_list
from services.kit.network_rules import NetworkRules


class CleaningSettings(ServiceSettings):
    """The shared fields and those of cleaning."""

    cleaning_processes: int = Field(
        1, ge=1, le=RECORDS_RAW.partitions, description="processes of this service that clean arriving records, at most"
    )
    cleaning_process: int = Field(
        1,
        ge=1,
        description="which of them this one is; the mesh sets it. Only the first has an API and builds data sets",
    )
    cleaning_sockets: Path | None = Field(
        None,
        description="folder of sockets by which the first process reads the metrics of the others; the mesh sets it",
    )
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
    originals: str = Field(
        "private=encrypted",
        description="how the originals of records are kept by data class, CLASS=HOW separated by commas: public, "
        "internal, private, unclassified (no class); plain, encrypted, none. What is not named is plain, but private "
        "is encrypted. The policy of a source wins",
    )
    originals_key_file: Path | None = Field(
        None,
        description="file with the keys of encrypted originals, 64 hexadecimal digits a line, the last of which is "
        "used; made at the first start, `keys/originals` of the state when unset; keep it: without it they cannot be "
        "read",
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

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if self.cleaning_process > self.cleaning_processes:
            raise ValueError("TIDEMILL_CLEANING_PROCESS must not be larger than TIDEMILL_CLEANING_PROCESSES")
        return self

    @field_validator("originals")
    @classmethod
    def _originals(cls, value: str) -> str:
        OriginalsPolicy.parse(value)
        return value

    @field_validator("augment_hosts")
    @classmethod
    def _hosts(cls, value: str) -> str:
        NetworkRules(split_list(value))
        return value
