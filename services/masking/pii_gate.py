"""Finds, in one pass over many texts, the few in which a pattern of personal data can match.

There are fifty patterns, and they use look-around, which RE2 does not have. Without it they become one expression of
RE2, whose time is linear. It finds every text that one of the patterns matches, and some more; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

import re2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MEMORY_BYTES: Final = 32 << 20
"""Memory of the compiled expression, caches included."""
_SEPARATOR: Final = "\n\0\n"
_LOOKS: Final = ("(?=", "(?!", "(?<=", "(?<!")
_UNICODE: Final = re.compile(r"\\u([0-9a-fA-F]{4})")
_COUNT: Final = re.compile(r"\{(\d+),\d+\}\??")
_CLASS: Final = re.compile(r"\[[^\]]*\]")
# Repetitions above this are replaced by "or more": a longer run need not be counted exactly to be found.
_MAX_COUNTED: Final = 8


class Gate:
    """Decides which texts to search. Thread-safe."""

    def __init__(self, patterns: Sequence[re.Pattern[str]], narrow: Mapping[int, str], wide: str) -> None:
        """Compiles the expression.

        Args:
            patterns: the patterns.
            narrow: characters that are matched as another one.
            wide: inside of a character class; a text with one of these characters is always searched.
        """
        options = re2.Options()
        options.log_errors = False
        options.never_capture = True
        options.max_mem = MEMORY_BYTES
        loose = [loosened(pattern) for pattern in patterns]
        self._pattern = re2.compile("|".join((*loose, f"[{wide}]")), options)
        self._narrow = narrow

    def open_to(self, texts: Sequence[str]) -> list[int]:
        """Positions of the texts in which a pattern may match."""
        together = _SEPARATOR.join(texts)
        if together.count("\0") != len(texts) - 1:
            # A text contains the separator itself, so positions in the joined text cannot be assigned.
            return [position for position, text in enumerate(texts) if self._may_match(text)]
        data = self._bytes(together)
        found: list[int] = []
        position = place = 0
        while (match := self._pattern.search(data, place)) is not None:
            position += data.count(b"\0", place, match.start())
            found.append(position)
            place = data.find(b"\0", match.start()) + 1
            position += 1
            if place == 0:
                break
        return found

    def _may_match(self, text: str) -> bool:
        return self._pattern.search(self._bytes(text)) is not None

    def _bytes(self, text: str) -> bytes:
        if text.isascii():
            return text.encode()
        import numpy as np

        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        narrow = _table(tuple(self._narrow.items()))[codes]
        return narrow.tobytes().decode("utf-32-le", "surrogatepass").encode("utf-8", "surrogatepass")


@cache
def _table(narrow: tuple[tuple[int, str], ...]) -> NDArray[np.uint32]:
    import numpy as np

    table = np.arange(0x110000, dtype=np.uint32)
    for code, char in narrow:
        table[code] = ord(char)
    return table


def loosened(pattern: re.Pattern[str]) -> str:
    """An RE2 expression that matches in every text in which the pattern matches, and in some more.

    Look-around is removed, except at the beginning and end of the pattern: there, forbidden characters stay forbidden,
    and what must follow must still follow. Repetitions may be longer than the pattern's.
    """
    source = pattern.pattern
    head, tail = "", ""
    if (leading := _first_look(source)) is not None and leading.startswith("(?<!") and (kind := _one_class(leading, 4)):
        head = f"(?:^|[^{kind}])"
    pieces, last = [], ""
    for piece, look in _pieces(source):
        if not look:
            pieces.append(piece)
        last = piece if look else ""
    if last.startswith("(?!") and (kind := _one_class(last, 3)):
        tail = f"(?:[^{kind}]|$)"
    elif last.startswith("(?="):
        # A text ends with the separator, or at the end of the joined texts.
        tail = f"(?:{last[3:-1]}|\\n)"
    loose = _UNICODE.sub(r"\\x{\1}", re.sub(r"\(\?P<\w+>", "(?:", "".join(pieces)))
    loose = _COUNT.sub(_without_end, loose)
    flags = "s" * bool(pattern.flags & re.DOTALL) + "i" * bool(pattern.flags & re.IGNORECASE)
    return f"(?{flags}:{head}(?:{loose}){tail})" if flags else f"(?:{head}(?:{loose}){tail})"


def _without_end(match: re.Match[str]) -> str:
    least = int(match[1])
    return "*" if least == 0 else "+" if least == 1 else f"{{{min(least, _MAX_COUNTED)},}}"


def _first_look(source: str) -> str | None:
    piece, look = next(_pieces(source), ("", False))
    return piece if look else None


def _one_class(look: str, start: int) -> str:
    """The inside of the character class of a look-around, if the class is all of it or of its first alternative."""
    match = _CLASS.match(look, start)
    if match is None or match.group().startswith("[^") or look[match.end() : match.end() + 1] not in (")", "|"):
        return ""
    inside = match.group()[1:-1]
    # A class with the separator cannot be forbidden, since it stands between two texts.
    return "" if "\\s" in inside or "\\n" in inside else inside


def _pieces(source: str) -> Iterator[tuple[str, bool]]:
    """Parts of a pattern in order, and whether each is a look-around."""
    start = place = 0
    while place < len(source):
        if source.startswith(_LOOKS, place):
            if place > start:
                yield source[start:place], False
            end = _end_of_group(source, place)
            yield source[place:end], True
            start = place = end
        else:
            place = _after(source, place)
    if place > start:
        yield source[start:place], False


def _after(source: str, place: int) -> int:
    """The position after the escape, character class or character that begins at `place`."""
    if source[place] == "\\":
        return place + 2
    if source[place] != "[":
        return place + 1
    place += 2 if source[place + 1] == "^" else 1
    # A `]` in first position is one of the characters.
    place += source[place] == "]"
    while source[place] != "]":
        place += 2 if source[place] == "\\" else 1
    return place + 1


def _end_of_group(source: str, place: int) -> int:
    depth = 0
    while True:
        depth += (source[place] == "(") - (source[place] == ")")
        place = _after(source, place)
        if depth == 0:
            return place
