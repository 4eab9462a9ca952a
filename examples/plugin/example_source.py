"""A source of another package: the mails of a mailbox file, one record a mail."""

from __future__ import annotations

import mailbox
from collections.abc import Iterator
from email.message import Message
from email.utils import parsedate_to_datetime
from hashlib import sha256
from pathlib import Path

from pydantic import Field

from services.ingest.engine.source_plugin import PulledRecord, Source, SourceParams


class MboxParams(SourceParams):
    """`path` of the mailbox on the machine of the ingest service."""

    path: str = Field(min_length=1)


class Mbox(Source[MboxParams]):
    """Mails with a plain text; the subject becomes an attribute, the date the time of the record."""

    params_type = MboxParams

    def digest(self) -> str:
        """Of the file's bytes."""
        return sha256(Path(self.params.path).read_bytes()).hexdigest()

    def records(self) -> Iterator[PulledRecord]:
        """The mails, in the order of the file."""
        for mail in mailbox.mbox(self.params.path, create=False):
            yield PulledRecord(
                _text(mail),
                attributes={"subject": str(mail["subject"] or "")},
                event_time=parsedate_to_datetime(mail["date"]) if mail["date"] else None,
            )


def _text(mail: Message) -> str:
    part = next((part for part in mail.walk() if part.get_content_type() == "text/plain"), None)
    content = part.get_payload(decode=True) if part is not None else None
    return content.decode("utf-8", "replace").strip() if isinstance(content, bytes) else ""
