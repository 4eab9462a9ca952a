"""Mail messages to records: the body that a person reads, decoded, and headers as attributes; no I/O.

MIME is parsed by the standard library, which forgives what real mail gets wrong. Of alternatives plain text is taken,
else HTML, which `strip_html` of a recipe turns into text; attachments are named, not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from datetime import UTC, datetime
from email.header import decode_header
from email.message import Message
from email.utils import parsedate_to_datetime

from services.ingest.domain.record import RawRecord, RecordRefusedError, check_record
from services.ingest.domain.source_import import LATER
from services.ingest.engine.attributes import Attributes
from services.ingest.engine.charsets import codec_of, text_of
from services.ingest.engine.file_format import FolderFormat, ReadFile
from services.ingest.engine.mail_parsing import MAX_STRUCTURE_BYTES, PARSER_ERRORS, BoundedMessage, parsed, repaired
from services.kit.ids import sha256_hex

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""A message with its attachments; of a longer one only this much, and one byte, is held in memory."""
DEFAULT_HEADERS = ("Subject", "From", "To", "Cc", "Date", "Message-ID", "In-Reply-To", "List-Id")
# Of a header; a longer one is cut, because decoding it takes time that is quadratic in its length.
_MAX_HEADER_CHARS = 32 * 1024
# What a person reads; other kinds of text are for programs: calendars, style sheets, business cards, copied headers.
_READ = frozenset(("text/plain", "text/html", "text/enriched", "text/markdown"))
# Header names that are attribute names, too.
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
# A line of an mbox that begins a message: a sender or not, and the day, month, time and year of its arrival.
_BEGINNING = re.compile(rb"From (?:\S+ +)?.{0,64}\b[A-Z][a-z]{2} [A-Z][a-z]{2} +\d{1,2} +\d{1,2}:\d\d.{0,40}\b\d{4}\b")
_QUOTED_BEGINNING = re.compile(rb"^>(>*From )", re.MULTILINE)
_WORD = re.compile(r"=\?[^?\s]+\?[bBqQ]\?[^?]*\?=")


@dataclass(frozen=True, slots=True)
class MailPiece:
    """A message as it is in a file, and which one of a mailbox it is, from 1; 0 if the file is one message."""

    content: bytes
    number: int = 0


@dataclass(frozen=True, slots=True)
class _Body:
    text: str
    is_html: bool


@dataclass(frozen=True)
class MailFolder(FolderFormat[MailPiece]):
    """A folder tree of mail messages, a file each or many in an mbox; a piece is a message.

    `headers` names those that become attributes; the usual ones where it is empty. The value of `id_header` identifies
    a message; its content where it is empty, or the message does not have that header.
    """

    headers: tuple[str, ...] = ()
    id_header: str = dataclass_field(default="", kw_only=True, metadata=LATER)
    field = "mail_folder"

    def violations(self) -> Iterator[tuple[str, str]]:
        """See `FileFormat`."""
        yield from super().violations()
        named = [(f"headers[{number}]", name) for number, name in enumerate(self.headers)]
        for field, name in [*named, *([("id_header", self.id_header)] if self.id_header else [])]:
            if _HEADER.fullmatch(name) is None:
                yield field, f"{name!r} is not the name of a header; write it as a mail does, for example X-Label."

    def split(self, file: ReadFile) -> Iterator[tuple[int, MailPiece]]:
        """Messages of a file, each with the number of its first line, from 1.

        If the first line of a file is the separator of an mbox, each separator that follows an empty line begins a
        message, and a line that begins with `>From ` stands for `From `. Any other file is one message.
        """
        message, start, number = bytearray(), 1, 0
        messages, after_empty = 0, True
        for number, line in enumerate(_lines(file.chunks), 1):
            if after_empty and (number == 1 or messages) and _BEGINNING.match(line):
                if message:
                    yield start, MailPiece(_unquoted(message), messages)
                messages, message, start = messages + 1, bytearray(), number + 1
            elif len(message) <= MAX_MESSAGE_BYTES:
                message += line
            after_empty = line in (b"\n", b"\r\n")
        if message or number:
            yield start, MailPiece(_unquoted(message) if messages else bytes(message), messages)

    def content(self, piece: MailPiece) -> bytes:
        """See `FileFormat`."""
        return piece.content

    def record(self, source: str, file: ReadFile, piece: MailPiece) -> RawRecord:
        """See `FileFormat`; of a message beyond `MAX_MESSAGE_BYTES` the piece has one byte more than that."""
        try:
            return self._record(source, file, piece.content)
        except RecordRefusedError as error:
            if not piece.number:
                raise
            raise RecordRefusedError(f"Message {piece.number}: {error.message}", reason=error.reason) from error

    def _record(self, source: str, file: ReadFile, content: bytes) -> RawRecord:
        if len(content) > MAX_MESSAGE_BYTES:
            raise RecordRefusedError(
                f"The message has more than {MAX_MESSAGE_BYTES} bytes, attachments included.", reason="MESSAGE_TOO_LONG"
            )
        attributes = self.file_attributes(file)
        message = _repaired(parsed(content), attributes)
        for name in self.headers or DEFAULT_HEADERS:
            if values := _values(message, name):
                own = name.lower().replace("-", "_")
                attributes.add(own, "\n".join(map(_header, values)))
                if any(len(value) > _MAX_HEADER_CHARS for value in values):
                    attributes.note(f"{own}: more than {_MAX_HEADER_CHARS} characters; cut")
        names: list[str] = []
        body = _body(message, attributes, names)
        if body is None or not body.text.strip():
            held = f"; it has attachments: {', '.join(names)[:200]}" if names else ""
            raise RecordRefusedError(f"The message has no text{held}.", reason="NO_MAIL_TEXT")
        attributes.add("content_type", "text/html" if body.is_html else "text/plain")
        if names:
            attributes.add("attachments", "\n".join(names))
        sent = _sent(message, attributes)
        record = RawRecord(source, body.text, attributes.result(), self._id(message), event_time=sent)
        check_record(record)
        return record.identified()

    def _id(self, message: Message) -> str:
        values = _values(message, self.id_header) if self.id_header else []
        value = _header(values[0]) if values else ""
        return f"mail_{sha256_hex(value)[:32]}" if value else ""


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


def _repaired(message: BoundedMessage, attributes: Attributes) -> BoundedMessage:
    if message.is_multipart():
        return message
    whole, notes = repaired(message)
    for note in notes:
        attributes.note(note)
    return whole


def _body(part: BoundedMessage, attributes: Attributes, names: list[str]) -> _Body | None:
    """The text of a part that a person reads; attachments on the way are noted in `names`."""
    if part.get_content_maintype() == "multipart" and not part.is_multipart():
        part = _repaired(part, attributes)
    if part.is_cut:
        attributes.note(f"content_type: more than {MAX_STRUCTURE_BYTES} bytes; cut")
    if part.is_multipart():
        inside = part.get_payload()
        bodies = [_body(inner, attributes, names) for inner in inside if isinstance(inner, BoundedMessage)]
        found = [body for body in bodies if body is not None and body.text.strip()]
        return _chosen(found, part.get_content_subtype() == "alternative")
    name = _file_name(part)
    # Some write `text/plain charset=us-ascii`.
    kind = part.get_content_type().partition(" ")[0]
    if kind.startswith("multipart/"):
        attributes.note(f"text: {kind} without parts; read as text")
        kind = "text/plain"
    if part.get_content_disposition() == "attachment" or kind not in _READ:
        names.append(_header(name) if name else kind)
        return None
    return _Body(_decoded(part, attributes), kind == "text/html")


def _file_name(part: Message) -> str:
    try:
        return part.get_filename() or ""
    except PARSER_ERRORS:
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
    try:
        content: object = part.get_payload(decode=True)
    except PARSER_ERRORS:
        attributes.note("text: its transfer encoding cannot be read; kept as it is")
        content = str(part.get_payload()).encode("utf-8", "surrogateescape")
    data = content if isinstance(content, bytes) else b""
    try:
        charset = part.get_content_charset() or ""
    except PARSER_ERRORS:
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
    raw = raw[:_MAX_HEADER_CHARS]
    if not raw.isascii():
        raw = text_of(raw.encode("utf-8", "surrogateescape"), "")[0]
    if _WORD.search(raw):
        try:
            parts = decode_header(raw)
        except PARSER_ERRORS:
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
    except PARSER_ERRORS:
        attributes.note("date: not a valid date of a mail; the time of the import counts")
        return None
