"""Limits of recipes and records, so that no recipe and no text can bring a process down.

After every operator a text may be as large as ingest accepts, and a record must fit into a message of the bus.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

from services.cleaning.domain.record import Rejection

MAX_TEXT_BYTES: Final = 512 * 1024
"""Largest text, and largest attribute, in bytes of UTF-8."""
MAX_RECORD_BYTES: Final = 2 * 1024 * 1024
"""Largest text with all its attributes, in bytes of UTF-8; a message of the bus holds 4 MiB."""
MAX_OPERATORS: Final = 128
"""Operators of a recipe; the proto has the same limit."""
MAX_PATTERNS: Final = 64
"""`regex_replace` operators of a recipe."""
MAX_TERMS: Final = 100_000
"""Terms of all `term_map` operators of a recipe."""
MAX_CPU_S: Final = 5.0
"""CPU seconds on one text of an operator whose cost a recipe decides; 512 KiB usually take milliseconds.

The time of the other operators grows with the text and no faster, which a test ensures for each.
"""

TOO_LARGE_REASON: Final = "too_large"
TOO_COSTLY_REASON: Final = "too_costly"


class TextRefusedError(Exception):
    """An operator cannot process a text within the limits; the record is dropped for this reason."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    @classmethod
    def too_large(cls, size: int) -> TextRefusedError:
        """For a text that has grown to `size` bytes and would grow further."""
        return cls(TOO_LARGE_REASON, f"bytes>={size} > max_bytes={MAX_TEXT_BYTES}")


class Budget:
    """Limits the current thread's CPU time for one text; create one for each text."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = time.thread_time()

    def check(self) -> None:
        """Checks the time; cheap as long as little wall time has passed.

        Raises:
            TextRefusedError: the time is used up.
        """
        # Reading the thread's CPU time costs ten times as much, and it never passes faster than wall time.
        if time.perf_counter() - self._wall > MAX_CPU_S and time.thread_time() - self._cpu > MAX_CPU_S:
            raise TextRefusedError(TOO_COSTLY_REASON, f"cpu_s > {MAX_CPU_S:g}")


def utf8_size(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def too_large_texts(texts: Sequence[str], operator: str) -> dict[int, Rejection]:
    """Rejections, by position, of the texts that are too large."""
    # A character takes at most four bytes, so the number of characters is enough for nearly every batch.
    if not texts or max(map(len, texts)) * 4 <= MAX_TEXT_BYTES:
        return {}
    sizes = map(utf8_size, texts)
    return {i: _too_large(operator, "text", size) for i, size in enumerate(sizes) if size > MAX_TEXT_BYTES}


def too_large_records(
    texts: Sequence[str], attributes: Sequence[Mapping[str, str]], operator: str
) -> dict[int, Rejection]:
    """Rejections, by position, of the records of which an attribute, or the whole, is too large."""
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
