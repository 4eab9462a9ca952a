"""Regular expressions with named groups in the options of sources, in linear time (RE2)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import re2

_MEMORY = 1 << 20


@lru_cache(maxsize=64)
def compiled(pattern: str) -> Any:
    """The compiled expression.

    Raises:
        re2.error: it is not valid.
    """
    options = re2.Options()
    options.max_mem = _MEMORY
    options.log_errors = False
    return re2.compile(pattern, options)


def wrong_pattern(pattern: str) -> str:
    """What is wrong with an expression; empty if it is valid."""
    try:
        compiled(pattern)
    except re2.error as error:
        said = error.args[0] if error.args else error
        words = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        return f"is not a valid RE2 expression: {words}."
    return ""
