"""Mail messages as trees of MIME parts: parsed by the standard library within limits, and repaired if they are damaged.

Two kinds of damage are repaired, because they leave headers, boundaries and encoded attachments in the text: an empty
line within the header, and parts whose boundary the header does not declare, or declares differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.errors import MessageError
from email.message import Message
from email.parser import BytesParser
from typing import Any, Final

from services.ingest.domain.record import RecordRefusedError

MAX_LINES: Final = 1_000_000
"""Lines of a message; the parser keeps each as a text of its own."""
MAX_PARTS: Final = 10_000
MAX_DEPTH: Final = 20
MAX_HEADERS: Final = 2_000
"""Headers of one part."""
MAX_STRUCTURE_BYTES: Final = 8192
"""Of a header that says how a part is made; a longer one is cut, for its parameters take quadratic time."""
# What the standard library raises on damaged mail, by its documentation and beyond it.
PARSER_ERRORS: Final = (
    MessageError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError
)  # fmt: skip

_SEARCHED_BYTES: Final = 32 * 1024
_STRUCTURE = frozenset(("content-type", "content-disposition", "content-transfer-encoding", "content-id"))
_HEADER_LINE: Final = re.compile(rb"([A-Za-z][A-Za-z0-9-]{0,75}):(?:[ \t]|$)")
# A header of a mail, not of a letter or a form, has at least one of these.
_MACHINE_HEADERS: Final = frozenset((b"content-type", b"mime-version", b"received"))
_MIN_HEADERS: Final = 3
_MAX_BLOCKS: Final = 8
_EMPTY_LINE: Final = re.compile(rb"\n[ \t]*\r?\n")
# SMTP's command, which broken relays leave in the text.
_COMMAND: Final = re.compile(rb"DATA\r?\n\s*")
_PART_HEAD: Final = re.compile(
    rb"^--(?P<boundary>\S[^\r\n]{0,200}?)[ \t]*\r?\n"
    rb"(?:[A-Za-z][A-Za-z0-9-]{0,75}:[^\r\n]*\r?\n(?:[ \t][^\r\n]*\r?\n){0,20}){0,4}?Content-Type:",
    re.MULTILINE | re.IGNORECASE,
)
# What stands before the first part for programs that do not know MIME.
_PREAMBLE: Final = re.compile(rb"\s*(?:[^\n]{0,60}\b(?:MIME|multi-?part)\b.{0,300})?", re.IGNORECASE | re.DOTALL)


class BoundedMessage(Message):
    """A message, or a part of one, that refuses to become too large while it is parsed."""

    depth = 0
    parts = 0
    is_cut = False
    """Whether one of its headers was cut."""
    raw_text = ""
    """What is between its header and its end if it has no parts; bytes beyond ASCII are surrogates."""
    _root: BoundedMessage | None = None

    def set_raw(self, name: str, value: str) -> None:
        """Adds a header."""
        if len(self) >= MAX_HEADERS:
            raise RecordRefusedError(f"A part has more than {MAX_HEADERS} headers.", reason="TOO_MANY_HEADERS")
        if len(value) > MAX_STRUCTURE_BYTES and name.lower() in _STRUCTURE:
            value, self.is_cut = value[:MAX_STRUCTURE_BYTES], True
        super().set_raw(name, value)

    def set_payload(self, payload: Any, charset: Any = None) -> None:
        """Sets the text of a part, or its parts."""
        if isinstance(payload, str):
            self.raw_text = payload
        super().set_payload(payload, charset)

    def attach(self, payload: object) -> None:
        """Adds a part."""
        assert isinstance(payload, BoundedMessage)
        root = self._root or self
        payload.depth, payload._root = self.depth + 1, root
        root.parts += 1
        if root.parts > MAX_PARTS:
            raise RecordRefusedError(f"The message has more than {MAX_PARTS} parts.", reason="TOO_MANY_PARTS")
        if payload.depth > MAX_DEPTH:
            raise RecordRefusedError(f"The message is nested more than {MAX_DEPTH} deep.", reason="NESTED_TOO_DEEP")
        super().attach(payload)


def parsed(content: bytes) -> BoundedMessage:
    """The message.

    Raises:
        RecordRefusedError: it is not one, or is larger than the limits.
    """
    if b"\0" in content[:1024]:
        raise RecordRefusedError("The file is not a mail message: it begins with NUL bytes.", reason="NOT_MAIL")
    if content.count(b"\n") > MAX_LINES:
        raise RecordRefusedError(f"The message has more than {MAX_LINES} lines.", reason="MESSAGE_TOO_LONG")
    try:
        message: BoundedMessage = BytesParser(BoundedMessage).parsebytes(content)
    except RecordRefusedError:
        raise
    except PARSER_ERRORS as error:
        raise RecordRefusedError(
            f"The message cannot be parsed ({type(error).__name__}: {error}).", reason="NOT_MAIL"
        ) from error
    if not message.keys():
        raise RecordRefusedError(
            "The file is not a mail message: it does not begin with headers (`Name: value`).", reason="NOT_MAIL"
        )
    return message


def repaired(message: BoundedMessage) -> tuple[BoundedMessage, list[str]]:
    """A message without parts, as it was before it was damaged, and notes on what was repaired."""
    notes: list[str] = []
    body = _raw_body(message)
    if lost := _lost_header(body):
        header, body = lost
        message = parsed(_header_with(message, header) + b"\n" + body)
        notes.append("headers: an empty line stands among them; those behind it were read as well")
        body = _raw_body(message) if not message.is_multipart() else b""
    declared = message.get_content_maintype() == "multipart"
    boundary = _boundary(body, declared)
    if boundary:
        kind = message.get_content_subtype() if declared else "mixed"
        quoted = re.sub(rb'([\\"])', rb"\\\1", boundary)
        head = b'Content-Type: multipart/%s; boundary="%s"\n' % (kind.encode(errors="replace"), quoted)
        message = parsed(_header_with(message, head) + b"\n" + body)
        notes.append("text: the boundary of its parts is not the declared one; it was found in the text")
    return message, notes


def _raw_body(message: BoundedMessage) -> bytes:
    return message.raw_text.encode("utf-8", "surrogateescape")


def _lost_header(body: bytes) -> tuple[bytes, bytes] | None:
    """Headers at the beginning of a body that an empty line has parted from the others, and what is behind them."""
    rest = _COMMAND.sub(b"", body.lstrip(b"\r\n"), count=1) if body.lstrip(b"\r\n").startswith(b"DATA") else body
    for _ in range(_MAX_BLOCKS):
        rest = rest.lstrip(b"\r\n")
        end = _EMPTY_LINE.search(rest, 0, _SEARCHED_BYTES)
        if end is None:
            return None
        lines, behind = rest[: end.start()].split(b"\n"), rest[end.end() :]
        if all(line.startswith((b" ", b"\t")) and b"=?" in line for line in lines):
            # The rest of an encoded subject, for example.
            rest = behind
            continue
        # What was broken may have left a line that is not a header.
        lines = lines if _HEADER_LINE.match(lines[0]) else lines[1:]
        names = {found[1].lower() for line in lines if (found := _HEADER_LINE.match(line))}
        whole = bool(lines) and all(_HEADER_LINE.match(line) or line.startswith((b" ", b"\t")) for line in lines)
        if not whole or len(names) < _MIN_HEADERS or not names & _MACHINE_HEADERS:
            return None
        return b"\n".join(line.rstrip(b"\r") for line in lines) + b"\n", behind
    return None


def _header_with(message: Message, found: bytes) -> bytes:
    """The header of a message with found lines: those about MIME replace its own, of the others its own count."""
    theirs = list(_headers(found))
    about_mime = {name for name, _ in theirs if name.startswith(b"content-") or name == b"mime-version"}
    own = [(name.encode("utf-8", "surrogateescape"), str(value)) for name, value in message.raw_items()]
    kept = [(name, value) for name, value in own if value.strip() and name.lower() not in about_mime]
    if any(name == b"content-type" for name in about_mime):
        # An encoding of the whole does not hold for parts that say their own.
        kept = [(name, value) for name, value in kept if name.lower() != b"content-transfer-encoding"]
    present = {name.lower() for name, _ in kept}
    lines = [name + b": " + value.strip().encode("utf-8", "surrogateescape") + b"\n" for name, value in kept]
    return b"".join([*lines, *(line for name, line in theirs if name in about_mime or name not in present)])


def _headers(lines: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names, in lower case, of headers with their lines, continuations included."""
    name, whole = b"", b""
    for line in lines.splitlines(keepends=True):
        found = _HEADER_LINE.match(line)
        if found is None:
            whole += line
            continue
        if name:
            yield name, whole
        name, whole = found[1].lower(), line
    if name:
        yield name, whole


def _boundary(body: bytes, declared: bool) -> bytes:
    """The boundary before the first part in a body; empty if there are no parts.

    A body that is not declared to have parts has them if nothing stands before the first.
    """
    found = _PART_HEAD.search(body, 0, _SEARCHED_BYTES)
    if found is None or not (declared or _PREAMBLE.fullmatch(body, 0, found.start())):
        return b""
    return found["boundary"]
