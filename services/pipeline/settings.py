"""Settings of the pipeline service; read by `__main__` only."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from services.kit.config import Endpoint, PortAddress, ServiceSettings, split_list
from services.kit.network_rules import NetworkRules


class PipelineSettings(ServiceSettings):
    """The shared fields and those of the pipeline."""

    keep_answers_days: int = Field(30, ge=1, description="days that an answer can be matched with feedback")
    notify_webhook: Endpoint | None = Field(
        None, description="URL that gets each decision about a roll-out as JSON, by POST; none when unset"
    )
    notify_smtp: PortAddress | None = Field(
        None, description="host:port of the mail server that sends each decision about a roll-out; none when unset"
    )
    notify_smtp_user: str | None = Field(None, description="user at the mail server; none when unset")
    notify_smtp_password_file: Path | None = Field(None, description="file with the user's password")
    notify_from: str = Field("tidemill@localhost", description="sender of these mails")
    notify_to: str = Field("", description="their receivers, comma-separated")
    judge_hosts: str = Field(
        "",
        description="hosts, addresses and networks (separated by commas; host:port, 10.0.0.0/8:9000, 127.0.0.1:*) that "
        "judges may be asked at; no text is sent to others. Their keys are variables that begin with "
        "TIDEMILL_JUDGE_KEY_",
    )

    @field_validator("judge_hosts")
    @classmethod
    def _hosts(cls, value: str) -> str:
        NetworkRules(split_list(value))
        return value

    @model_validator(mode="after")
    def _someone_gets_mail(self) -> Self:
        if (self.notify_smtp is None) is not (not self.notify_to):
            raise ValueError("set TIDEMILL_NOTIFY_SMTP and TIDEMILL_NOTIFY_TO together")
        return self
