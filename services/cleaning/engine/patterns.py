r"""Regular expressions of recipes, run by RE2: time is linear in the text, whatever the pattern.

RE2 differs from Python's `re` (https://github.com/google/re2/wiki/Syntax):

- It has no look-ahead, look-behind, back-references, conditions, atomic groups, possessive quantifiers or comments,
  and counts repetitions up to 1000 only.
- `\d`, `\w`, `\s` and `\b` cover ASCII only: write `\p{N}`, `[\p{L}\p{N}_]`, `\p{Z}`, `\p{Han}` for more.
- `$` without `multiline` is only the end of the text, not also the position before a final line end; the end is `\z`,
  not `\Z`.
- A character by its code is `\x{4e00}`, not `\u4e00`.
"""

from __future__ import annotations

import re
from typing import Final

import re2

from services.cleaning.engine.limits import MAX_TEXT_BYTES, Budget, TextRefusedError

MEMORY_BYTES: Final = 1 << 20
"""Memory of one compiled pattern, caches included."""
# RE2 simulates a program that is too large for its cache character by character, which is slow.
_MAX_INSTRUCTIONS: Final = 5000
# Features that RE2 lacks: how they look in a pattern, and their names.
_MISSING: Final = (
    (r"(?=", "look-ahead"),
    (r"(?!", "look-ahead"),
    (r"(?<=", "look-behind"),
    (r"(?<!", "look-behind"),
    (r"(?P=", "back-references"),
    (r"(?>", "atomic groups"),
    (r"(?(", "conditions"),
    (r"(?#", "comments"),
)
_BACK_REFERENCE: Final = re.compile(r"(?<!\\)(?:\\\\)*\\[1-9]")
_ANY_BYTE: Final = re.compile(r"(?<!\\)(?:\\\\)*\\C")
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "b": "\b", "\\": "\\"}
_TEMPLATE: Final = re.compile(r"\\(?:([1-9][0-9]?)|g<([^<>]*)>|(.)|$)", re.DOTALL)


class PatternError(ValueError):
    """A pattern that RE2 does not accept."""


class ReplacementError(ValueError):
    """A replacement that is malformed, or refers to a group that the pattern does not have."""


class LinearPattern:
    """A pattern with its replacement. Thread-safe."""

    def __init__(self, pattern: str, replacement: str, *, ignore_case: bool = False, multiline: bool = False) -> None:
        """Compiles both.

        Raises:
            PatternError: the pattern is not valid, or too large.
            ReplacementError: the replacement is not valid.
        """
        options = re2.Options()
        options.max_mem = MEMORY_BYTES
        options.log_errors = False
        options.case_sensitive = not ignore_case
        if _ANY_BYTE.search(pattern):
            raise PatternError(r"\C matches part of a character; write . or [\s\S]")
        try:
            self._compiled = re2.compile(f"(?m:{pattern})" if multiline else pattern, options)
        except re2.error as error:
            raise PatternError(_explanation(pattern, error)) from error
        size: int = self._compiled.programsize
        if size > _MAX_INSTRUCTIONS:
            raise PatternError(
                f"is too large: it compiles to {size} instructions of {_MAX_INSTRUCTIONS}; "
                "repeat large classes such as \\p{L} with + instead of a count"
            )
        names: dict[str, int] = dict(self._compiled.groupindex)
        self._parts = _template(replacement, self._compiled.groups, names)
        self._literal = "".join(str(part) for part in self._parts).encode() if self._is_literal() else None

    def replace(self, text: str) -> str:
        """The text with replacements.

        Raises:
            TextRefusedError: the text grows beyond what a text may be, or takes too long.
        """
        data = text.encode("utf-8", "surrogatepass")
        pieces: list[bytes] = []
        end, size, empty = 0, 0, -1
        budget: Budget | None = None
        for match in self._compiled.finditer(data):
            start, stop = match.span()
            if start == stop:
                # The RE2 module steps by bytes, so it finds some empty matches twice, and some inside a character.
                if start == empty or (start < len(data) and data[start] & 0xC0 == 0x80):
                    continue
                empty = start
            written = self._literal if self._literal is not None else self._written(match)
            size += start - end + len(written)
            if size > MAX_TEXT_BYTES:
                raise TextRefusedError.too_large(size)
            # Each search is linear in the rest of the text, but all together may be quadratic: `a*b|a` reads to the
            # end for each match.
            if budget is None:
                budget = Budget()
            budget.check()
            pieces += (data[end:start], written)
            end = stop
        if not pieces:
            return text
        pieces.append(data[end:])
        return b"".join(pieces).decode("utf-8", "surrogatepass")

    def _is_literal(self) -> bool:
        return all(isinstance(part, str) for part in self._parts)

    def _written(self, match: re2._Match) -> bytes:
        written: list[bytes] = []
        for part in self._parts:
            written.append(part.encode() if isinstance(part, str) else match.group(part) or b"")
        return b"".join(written)


def _explanation(pattern: str, error: Exception) -> str:
    said = error.args[0] if error.args else ""
    said = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    text = f"is not a valid RE2 regular expression ({said})"
    missing = [name for sign, name in _MISSING if sign in pattern]
    if _BACK_REFERENCE.search(pattern):
        missing.append("back-references")
    if missing:
        return f"{text}; RE2, whose time is linear, has no {' and no '.join(dict.fromkeys(missing))}"
    if r"\Z" in pattern:
        return rf"{text}; the end of a text is \z"
    if r"\u" in pattern or r"\N" in pattern:
        return rf"{text}; a character by its code is \x{{4e00}}"
    return text


def _template(replacement: str, groups: int, names: dict[str, int]) -> list[str | int]:
    r"""A replacement as literal texts and group numbers; it may have `\1` to `\99`, `\g<name>` and escapes."""
    parts: list[str | int] = []
    end = 0
    for found in _TEMPLATE.finditer(replacement):
        parts.append(replacement[end : found.start()])
        end = found.end()
        number, name, escape = found.groups()
        reference = number or name
        if reference is not None:
            group = int(reference) if reference.isascii() and reference.isdigit() else names.get(reference)
            if group is None or group > groups:
                raise ReplacementError(f"refers to group {reference!r}, which the pattern does not have")
            parts.append(group)
        elif escape in _ESCAPES:
            parts.append(_ESCAPES[escape])
        elif escape is None or (escape.isascii() and escape.isalnum()):
            sign = found.group()
            raise ReplacementError(rf"contains {sign!r}, which means nothing there; a backslash is written \\")
        else:
            parts.append(found.group())
    parts.append(replacement[end:])
    return [part for part in parts if part != ""]
