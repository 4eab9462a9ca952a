"""Markdown tables of texts that may be anything."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def escaped(text: str) -> str:
    """Text without markup, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> Iterator[str]:
    """The lines of a table.

    Args:
        header: as it is to stand there.
        rows: texts, which are escaped.
        right: of each column, whether it is aligned to the right.
    """
    yield "| " + " | ".join(header) + " |"
    yield "|" + "|".join("---:" if each else "---" for each in right) + "|"
    for row in rows:
        yield "| " + " | ".join(map(escaped, row)) + " |"
