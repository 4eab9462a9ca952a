"""Removes headers of mail that stand in a text: of a forwarded or returned message, or of one that is talked about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from services.cleaning.engine.operator import TextMap, TextMapParams

_HEADER: Final = re.compile(r"[ \t>]{0,8}([A-Za-z][A-Za-z0-9-]{1,40}):(?:[ \t]|$)")
_TRANSPORT: Final = re.compile(
    r"^[ \t>]{0,8}(?:Received|Return-Path|Delivered-To|Message-ID|MIME-Version|Content-Type|Content-Transfer-Encoding"
    r"|Content-Disposition|X-[A-Z][A-Za-z-]+|User-Agent|Envelope-to|List-[A-Z][a-z]+):",
    re.IGNORECASE | re.MULTILINE,
)
# What a line alone must look like to be a header.
_ALONE: Final = re.compile(
    r"[ \t>]{0,8}(?:Content-Type:[ \t]*[a-z]+/[\w.+-]+[ \t]*(?:;.*)?|Content-Transfer-Encoding:[ \t]*[\w-]+"
    r"|MIME-Version:[ \t]*\d\.\d.{0,40}|(?:Return-Path|Delivered-To|Message-ID):[ \t]*\S+)[ \t]*$",
    re.IGNORECASE,
)
_BOUNDARY: Final = re.compile(r"[ \t>]{0,8}--[-=_\w.+/:' ]{6,80}[ \t]*$")
_SEPARATOR: Final = re.compile(r"[ \t>]{0,8}>?From \S+ .{0,30}\d\d:\d\d.{0,40}$")
_MIN_SHARE: Final = 0.5
_MAX_FORWARDED: Final = 16


class StripMailHeaders(TextMap[TextMapParams]):
    """Removes blocks of mail headers, such as those of a forwarded message, with the MIME boundary above them.

    A block is some lines `Name: value` in a row, one of which only programs write: `Received`, `Content-Type`,
    `X-Mailer`. The four lines From, Date, To and Subject of a letter stay, and so do forms and sentences.
    """

    def map(self, text: str) -> str:
        """The text without headers."""
        if _TRANSPORT.search(text) is None:
            return text
        kept: list[str] = []
        changed = False
        lines = text.split("\n")
        start = 0
        while start < len(lines):
            end = start
            while end < len(lines) and lines[end].strip(" \t>\r"):
                end += 1
            block = lines[start:end]
            first = len(block)
            # Above the headers of one message there may be those of the one that it was forwarded with.
            for _ in range(_MAX_FORWARDED):
                before, first = first, _start_of_headers(block[:first])
                if first == before:
                    break
            changed = changed or first < len(block)
            kept += block[:first]
            # The empty line behind it.
            kept += lines[end : end + 1]
            start = end + 1
        return "\n".join(kept) if changed else text


def _start_of_headers(block: Sequence[str]) -> int:
    """Where the headers at the end of a block begin; its length if it has none."""
    first, belonging, headers, by_program = len(block), 0, 0, False
    for number in range(len(block) - 1, -1, -1):
        line = block[number]
        if not _HEADER.match(line):
            belonging += line.startswith((" ", "\t"))
            continue
        belonging, headers = belonging + 1, headers + 1
        by_program = by_program or _TRANSPORT.match(line) is not None
        size = len(block) - number
        marked = number > 0 and _BOUNDARY.match(block[number - 1]) is not None
        alone = size == 1 and _ALONE.match(line) is not None
        # Lines that a mail program broke stand between them.
        if by_program and (alone or marked or headers > 1) and belonging >= _MIN_SHARE * size:
            first = number
    while 0 < first < len(block) and (_BOUNDARY.match(block[first - 1]) or _SEPARATOR.match(block[first - 1])):
        first -= 1
    return first


def _belongs(line: str) -> bool:
    return line.startswith((" ", "\t")) or _HEADER.match(line) is not None
