"""Mail messages to records: the body that a person reads, decoded, and headers as attributes; no I/O.

MIME is parsed by the standard library, which forgives what real mail gets wrong. Of alternatives plain text is taken,
else HTML, which `strip_html` of a recipe turns into text; attachments are named, not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.errors import MessageError
from email.header import decode_header
from email.message import Message
from email.parser import BytesParser
from email.utils import parsedate_to_datetime

from services.ingest.domain.record import RawRecord, RecordRefusedError, check_record
from services.ingest.engine.attributes import Attributes
from services.ingest.engine.charsets import codec_of, text_of
from services.ingest.engine.file_format import FolderFormat, ReadFile

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""A message with its attachments; of a longer one only this much, and one byte, is held in memory."""
DEFAULT_HEADERS = ("Subject", "From", "To", "Cc", "Date", "Message-ID", "In-Reply-To", "List-Id")
_DEEPEST = 40
# Header names that are attribute names, too.
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
# A line of an mbox that begins a message: a sender or not, and the day, month, time and year of its arrival.
_BEGINNING = re.compile(rb"From (?:\S+ +)?.{0,64}\b[A-Z][a-z]{2} [A-Z][a-z]{2} +\d{1,2} +\d{1,2}:\d\d.{0,40}\b\d{4}\b")
_QUOTED_BEGINNING = re.compile(rb"^>(>*From )", re.MULTILINE)
_WORD = re.compile(r"=\?[^?\s]+\?[bBqQ]\?[^?]*\?=")


@dataclass(frozen=True, slots=True)
class _Body:
    text: str
    is_html: bool


@dataclass(frozen=True)
class MailFolder(FolderFormat[bytes]):
    """A folder tree of mail messages, a file each or many in an mbox; a piece is a message.

    `headers` names those that become attributes; the usual ones where it is empty.
    """

    headers: tuple[str, ...] = ()
    field = "mail_folder"

    def violations(self) -> Iterator[tuple[str, str]]:
        """See `FileFormat`."""
        yield from super().violations()
        for number, name in enumerate(self.headers):
            if _HEADER.fullmatch(name) is None:
                message = f"{name!r} is not the name of a header; write it as a mail does, for example X-Label."
                yield f"headers[{number}]", message

    def split(self, file: ReadFile) -> Iterator[tuple[int, bytes]]:
        """Messages of a file, each with the number of its first line, from 1.

        If the first line of a file is the separator of an mbox, each separator that follows an empty line begins a
        message, and a line that begins with `>From ` stands for `From `. Any other file is one message.
        """
        message, start, number = bytearray(), 1, 0
        mailbox, after_empty = False, True
        for number, line in enumerate(_lines(file.chunks), 1):
            if after_empty and (number == 1 or mailbox) and _BEGINNING.match(line):
                if message:
                    yield start, _unquoted(message)
                mailbox, message, start = True, bytearray(), number + 1
            elif len(message) <= MAX_MESSAGE_BYTES:
                message += line
            after_empty = line in (b"\n", b"\r\n")
        if message or number:
            yield start, _unquoted(message) if mailbox else bytes(message)

    def record(self, source: str, file: ReadFile, piece: bytes) -> RawRecord:
        """See `FileFormat`; of a message beyond `MAX_MESSAGE_BYTES` the piece has one byte more than that."""
        if len(piece) > MAX_MESSAGE_BYTES:
            raise RecordRefusedError(
                f"The message has more than {MAX_MESSAGE_BYTES} bytes, attachments included.", reason="MESSAGE_TOO_LONG"
            )
        message = _parsed(piece)
        attributes = self.file_attributes(file)
        for name in self.headers or DEFAULT_HEADERS:
            if values := _values(message, name):
                attributes.add(name.lower().replace("-", "_"), "\n".join(map(_header, values)))
        names: list[str] = []
        body = _body(message, attributes, names, 0)
        if body is None or not body.text.strip():
            held = f"; it has attachments: {', '.join(names)[:200]}" if names else ""
            raise RecordRefusedError(f"The message has no text{held}.", reason="NO_MAIL_TEXT")
        attributes.add("content_type", "text/html" if body.is_html else "text/plain")
        if names:
            attributes.add("attachments", "\n".join(names))
        sent = _sent(message, attributes)
        record = RawRecord(source, body.text, attributes.result(), event_time=sent)
        check_record(record)
        return record.identified()


FORMAT = MailFolder


def _unquoted(message: bytearray) -> bytes:
    return _QUOTED_BEGINNING.sub(rb"\1", bytes(message))


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines with their ends; one beyond the limit of a message comes in parts."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"
        if len(rest) > MAX_MESSAGE_BYTES:
            yield rest
            rest = b""
    if rest:
        yield rest


def _parsed(content: bytes) -> Message:
    if b"\0" in content[:1024]:
        raise RecordRefusedError("The file is not a mail message: it begins with NUL bytes.", reason="NOT_MAIL")
    try:
        message = BytesParser().parsebytes(content)
    except (MessageError, RecursionError, ValueError) as error:
        raise RecordRefusedError(f"The message cannot be parsed: {error}.", reason="NOT_MAIL") from error
    if not message.keys():
        raise RecordRefusedError(
            "The file is not a mail message: it does not begin with headers (`Name: value`).", reason="NOT_MAIL"
        )
    return message


def _body(part: Message, attributes: Attributes, names: list[str], depth: int) -> _Body | None:
    """The text of a part that a person reads; attachments on the way are noted in `names`."""
    if depth > _DEEPEST:
        raise RecordRefusedError(f"The message is nested more than {_DEEPEST} parts deep.", reason="NESTED_TOO_DEEP")
    payload = part.get_payload()
    if isinstance(payload, list):
        bodies = [_body(inner, attributes, names, depth + 1) for inner in payload if isinstance(inner, Message)]
        found = [body for body in bodies if body is not None and body.text.strip()]
        return _chosen(found, part.get_content_subtype() == "alternative")
    name = _file_name(part)
    kind = part.get_content_type()
    if part.get_content_disposition() == "attachment" or not kind.startswith("text/") or kind == "text/calendar":
        names.append(_header(name) if name else kind)
        return None
    return _Body(_decoded(part, attributes), kind == "text/html")


def _file_name(part: Message) -> str:
    try:
        return part.get_filename() or ""
    except (LookupError, ValueError, TypeError):
        # A name in an unknown encoding.
        return ""


def _chosen(found: list[_Body], alternative: bool) -> _Body | None:
    """Of alternatives the plain one, the last if there are several; else all plain ones, or all HTML ones."""
    plain = [body for body in found if not body.is_html]
    kept = plain or found
    if not kept:
        return None
    if alternative or len(kept) == 1:
        return kept[-1]
    return _Body("\n\n".join(body.text.rstrip("\n") for body in kept), not plain)


def _decoded(part: Message, attributes: Attributes) -> str:
    content = part.get_payload(decode=True)
    data = content if isinstance(content, bytes) else b""
    try:
        charset = part.get_content_charset() or ""
    except (LookupError, ValueError):
        charset = ""
    text, used = text_of(data, charset)
    if charset and used != codec_of(charset):
        attributes.note(f"text: not in {charset[:40]}, read as {used}")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


def _values(message: Message, name: str) -> list[str]:
    """All values of a header as they stand in the message; bytes beyond ASCII are surrogates."""
    return [str(value) for own, value in message.raw_items() if own.lower() == name.lower()]


def _header(raw: str) -> str:
    """A header's value in one line, its encoded words (RFC 2047) and raw bytes decoded."""
    if not raw.isascii():
        raw = text_of(raw.encode("utf-8", "surrogateescape"), "")[0]
    if _WORD.search(raw):
        try:
            parts = decode_header(raw)
        except (MessageError, ValueError):
            parts = []
        if parts:
            decoded = "".join(
                text_of(part, charset or "")[0] if isinstance(part, bytes) else part for part, charset in parts
            )
            # What is not well encoded decodes to nothing.
            raw = decoded if decoded.strip() else raw
    return " ".join(raw.replace("\0", "").split())


def _sent(message: Message, attributes: Attributes) -> datetime | None:
    """When it was sent, by its own words; None where it does not say, or says no time."""
    values = _values(message, "Date")
    if not values:
        return None
    try:
        moment = parsedate_to_datetime(_header(values[0]))
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError, IndexError):
        attributes.note("date: not a valid date of a mail; the time of the import counts")
        return None
