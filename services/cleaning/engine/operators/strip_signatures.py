"""Removes what mail programs and mailing lists put under a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pydantic import Field

from services.cleaning.engine.operator import TextMap, TextMapParams

_DASHES: Final = re.compile(r"--[ \t]?$")
_RULE: Final = re.compile(
    r"[ \t]*(?:[_=*-][ \t]?){10,}[>~]*[ \t]*$|-{3,}[ ]?~-*[~>][ \t]*$|-+[ ]Yahoo! Groups\b.{0,40}$"
)
# A longer line is not one that was ruled by a program.
_MAX_RULE_CHARS: Final = 200
_FOOTER: Final = re.compile(
    r"mailing[ -]list|\bunsubscri|\(un\)subscri|/listinfo/|\byahoo! groups\b|\bto be removed\b|\bthis sf\.net email\b"
    r"|邮件列表|郵件列表|退订|退訂|取消订阅|取消訂閱",
    re.IGNORECASE,
)
_SENT_FROM: Final = re.compile(
    r"[ \t]*(?:sent from (?:my|mail for|yahoo mail)\b.{0,60}|get outlook for (?:ios|android)\b.{0,60}"
    r"|[发發]自我的.{1,40}|从我的.{1,30}发送)[ \t]*$",
    re.IGNORECASE,
)
_ARMOR_BEGIN: Final = re.compile(r"(?:- )?-----BEGIN PGP (SIGNATURE|PUBLIC KEY BLOCK|SIGNED MESSAGE)-----[ \t]*$")
_ARMOR_END: Final = "-----END PGP "
_MAX_FOOTER_LINES: Final = 14


class StripSignaturesParams(TextMapParams):
    """`max_lines`: a signature longer than this many lines with text is not one, and stays."""

    max_lines: int = Field(12, ge=1, le=100)


class StripSignatures(TextMap[StripSignaturesParams]):
    """Removes signatures below `--`, footers of mailing lists, `Sent from my …`, `发自我的…`, PGP signatures and keys.

    Only at the end of a text, and only below a line of its own: `--` within a sentence, lines below titles and tables
    stay, as does what is longer than a signature.
    """

    params_type = StripSignaturesParams

    def map(self, text: str) -> str:
        """The text without what stands under it."""
        lines = text.split("\n")
        kept = _without_armor(lines) if "-----BEGIN PGP " in text else list(lines)
        before = -1
        while before != len(kept):
            before = len(kept)
            del kept[_end_without_footer(kept) :]
            del kept[self._end_without_signature(kept) :]
            while kept and (not kept[-1].strip() or _SENT_FROM.match(kept[-1])):
                # Empty lines at the end alone do not change a text.
                kept.pop()
        if len(kept) == len(lines) or (not kept and not text.strip()):
            return text
        if not any(line.strip() for line in lines[len(kept) :]) and kept == lines[: len(kept)]:
            return text
        return "\n".join(kept)

    def _end_without_signature(self, lines: Sequence[str]) -> int:
        """Where the signature begins: at the last `--` of those that have only a signature below them."""
        below, end = 0, len(lines)
        for number in range(len(lines) - 1, 0, -1):
            if _DASHES.fullmatch(lines[number].removeprefix("- ")):
                end = number
            elif lines[number].strip():
                below += 1
                if below > self.params.max_lines:
                    break
        return end


def _end_without_footer(lines: Sequence[str]) -> int:
    """Where the footer of a mailing list begins: at a ruled line with its words below it."""
    below, found, end = 0, False, len(lines)
    for number in range(len(lines) - 1, 0, -1):
        line = lines[number]
        if below and len(line) <= _MAX_RULE_CHARS and _RULE.match(line):
            if found:
                end = number
            below += 1
        elif line.strip():
            below += 1
            found = found or _FOOTER.search(line) is not None
        if below > _MAX_FOOTER_LINES:
            break
        if end == number:
            break
    return end


def _without_armor(lines: Sequence[str]) -> list[str]:
    """Lines without PGP's keys, signatures and the head of what is signed."""
    kept: list[str] = []
    inside = ""
    begun = 0
    for line in lines:
        found = _ARMOR_BEGIN.match(line) if not inside else None
        if found:
            inside, begun = found[1], len(kept)
        kept.append(line)
        if not inside:
            continue
        if inside == "SIGNED MESSAGE":
            if not line.strip():
                del kept[begun:]
                inside = ""
        elif line.removeprefix("- ").startswith(_ARMOR_END):
            del kept[begun:]
            inside = ""
    return kept
