"""Limits of recipes and records, so that no recipe and no text can bring a process down.

A text is at most as large as ingest accepts, also after every operator; a record fits into a message of the bus.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

from services.cleaning.domain.record import Rejection

MAX_TEXT_BYTES: Final = 512 * 1024
"""UTF-8 of a text, and of one attribute."""
MAX_RECORD_BYTES: Final = 2 * 1024 * 1024
"""UTF-8 of a text and all its attributes; a message of the bus holds 4 MiB."""
MAX_OPERATORS: Final = 128
"""Operators of a recipe; the contract says the same."""
MAX_PATTERNS: Final = 64
"""`regex_replace` operators of a recipe."""
MAX_TERMS: Final = 100_000
"""Terms of all `term_map` operators of a recipe."""
MAX_CPU_S: Final = 5.0
"""Processor seconds of one operator on one text; 512 KiB take milliseconds as a rule."""

TOO_LARGE_REASON: Final = "too_large"
TOO_COSTLY_REASON: Final = "too_costly"


class TextRefusedError(Exception):
    """An operator cannot finish a text within its limits; the record is dropped for this reason."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    @classmethod
    def too_large(cls, size: int) -> TextRefusedError:
        """For a text that has grown to `size` bytes and would grow further."""
        return cls(TOO_LARGE_REASON, f"bytes>={size} > max_bytes={MAX_TEXT_BYTES}")


class Budget:
    """Processor time of the running thread on one text; begin one with each text."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = time.thread_time()

    def check(self) -> None:
        """Checks the time; cheap if little has passed since the last check.

        Raises:
            TextRefusedError: it is spent.
        """
        # Asking for the thread's own time costs ten times as much, and it never passes faster.
        if time.perf_counter() - self._wall > MAX_CPU_S and time.thread_time() - self._cpu > MAX_CPU_S:
            raise TextRefusedError(TOO_COSTLY_REASON, f"cpu_s > {MAX_CPU_S:g}")


def utf8_size(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def too_large_texts(texts: Sequence[str], operator: str) -> dict[int, Rejection]:
    """Rejections, by position, of the texts that are larger than a text may be."""
    # A character takes four bytes at most, so that the length clears nearly every batch.
    if not texts or max(map(len, texts)) * 4 <= MAX_TEXT_BYTES:
        return {}
    sizes = map(utf8_size, texts)
    return {i: _too_large(operator, "text", size) for i, size in enumerate(sizes) if size > MAX_TEXT_BYTES}


def too_large_records(
    texts: Sequence[str], attributes: Sequence[Mapping[str, str]], operator: str
) -> dict[int, Rejection]:
    """Rejections, by position, of the records with an attribute, or a sum of all, that is too large."""
    found: dict[int, Rejection] = {}
    for position, (text, own) in enumerate(zip(texts, attributes, strict=True)):
        if (len(text) + sum(map(len, own.values()))) * 4 <= MAX_TEXT_BYTES:
            continue
        sizes = {name: utf8_size(value) for name, value in own.items()}
        name = max(sizes, key=lambda name: sizes[name], default="")
        total = utf8_size(text) + sum(sizes.values())
        if sizes and sizes[name] > MAX_TEXT_BYTES:
            found[position] = _too_large(operator, name, sizes[name])
        elif total > MAX_RECORD_BYTES:
            detail = f"operator={operator} record_bytes={total} > max_bytes={MAX_RECORD_BYTES}"
            found[position] = Rejection(TOO_LARGE_REASON, detail)
    return found


def _too_large(operator: str, field: str, size: int) -> Rejection:
    return Rejection(TOO_LARGE_REASON, f"operator={operator} field={field} bytes={size} > max_bytes={MAX_TEXT_BYTES}")
