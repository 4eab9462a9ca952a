"""Removes what a reply quotes, with the line that says whose words they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from services.cleaning.engine.operator import TextMap, TextMapParams

# Not a comparison (`>5`, `>= 3`) and not an arrow.
_QUOTED: Final = re.compile(r"[ \t]{0,3}>(?:[> \t]*$|[> \t]*[ \t][^\s=]|>*[^\s>=\d<~-])")
_PROMPT: Final = re.compile(r"[ \t]{0,3}(?:>>> |\.\.\. ?)")
_WROTE: Final = r"(?:wrote|writes|said|says|mentioned|stated|replied|scribbled|schrieb|écrit|写道|寫道|写到|说道)"
# `On Monday, Ann wrote:`, `Ann <ann@example.org> writes:`, `在 2020年1月1日，张三 写道：`; it may be on two lines.
_ATTRIBUTION: Final = re.compile(
    rf".{{0,200}}(?:{_WROTE}|<[^<>\s]+@[^<>\s]+>|\b(?:19|20)\d\d\b)[^!?。！？\n]{{0,60}}[:：]\s*$", re.IGNORECASE
)
_ATTRIBUTION_START: Final = re.compile(
    r"[ \t]*(?:On|At|In message|In article|>?\s*\"|在|于|於)[ \t\d].{0,200}$|.{0,80}<[^<>\s]+@[^<>\s]+>"
)
# The original stands below without marks: a day or a time, and an address.
_UNMARKED: Final = re.compile(
    r"[ \t]*(?:On|At|在|于|於)[ ]?(?=.{0,200}\d{1,4}[-/年:]).{0,200}"
    rf"<[^<>\s]{{1,100}}@[^<>\s]{{1,100}}>.{{0,40}}{_WROTE}[:：]\s*$",
    re.IGNORECASE,
)
_ORIGINAL: Final = re.compile(
    r"[ \t]*-{3,20}[ \t]*(?:original[ ]message|ursprüngliche[ ]nachricht|原始邮件|原始郵件|原邮件)[ \t]*-{3,20}[ \t]*$",
    re.IGNORECASE,
)
_MIN_LINES: Final = 2
_MAX_REST_CHARS: Final = 120


class StripQuotes(TextMap[TextMapParams]):
    """Removes what a reply quotes: lines with `>`, `On … wrote:` and `在…写道：` before them, an original below.

    Lines with `>` are quotes if such a line or a second one of them says so. `>5 mmol`, `>= 3`, a lone `> note`
    and Python's `>>> print()` stay. What follows `-----Original Message-----` or `原始邮件` is removed to the end.
    """

    def map(self, text: str) -> str:
        """The text without quotes."""
        if ">" not in text and "--" not in text:
            return text
        lines = text.split("\n")
        end = _end_of_own_words(lines)
        quoted = [_is_quoted(line) for line in lines[:end]]
        removed = list(quoted)
        for number, is_first in enumerate(quoted):
            if is_first and (number == 0 or not quoted[number - 1]):
                for place in _attribution(lines, number):
                    removed[place] = True
        prompts = all(_PROMPT.match(line) for line, is_one in zip(lines, quoted, strict=False) if is_one)
        if sum(removed) < _MIN_LINES or (prompts and removed == quoted):
            removed = [False] * end
        if end == len(lines) and not any(removed):
            return text
        kept = [line for line, is_one in zip(lines, removed, strict=False) if not is_one]
        while kept and not kept[-1].strip():
            kept.pop()
        return "\n".join(kept)


def _is_quoted(line: str) -> bool:
    return _QUOTED.match(line) is not None


def _end_of_own_words(lines: Sequence[str]) -> int:
    """Number of the line from which on everything is the original; their count if there is none."""
    for number, line in enumerate(lines):
        if number and (_ORIGINAL.match(line) or (_UNMARKED.match(line) and not _quotes_follow(lines, number + 1))):
            return number
    return len(lines)


def _quotes_follow(lines: Sequence[str], start: int) -> bool:
    following = next((line for line in lines[start : start + 3] if line.strip()), "")
    return _is_quoted(following)


def _attribution(lines: Sequence[str], first: int) -> Sequence[int]:
    """Lines that say whose words begin at `first`: one or two, perhaps with an empty line behind them."""
    last = first - 1
    if last >= 0 and not lines[last].strip():
        last -= 1
    if last < 0 or not lines[last].strip():
        return ()
    if not _ATTRIBUTION.match(lines[last]):
        return ()
    # One that begins with a name or a verb may be the rest of a line that the mail program broke.
    if last and _is_rest(lines[last]) and _ATTRIBUTION_START.match(lines[last - 1]):
        return (last - 1, last)
    return (last,)


def _is_rest(line: str) -> bool:
    return not re.match(r"[ \t]*(?:On|At|In|在|于|於)[ \t\d]", line) and len(line) < 120
