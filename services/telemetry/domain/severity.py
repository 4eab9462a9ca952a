"""Levels of log lines.

The five levels of Python's logging, and `trace`. OTLP's severity numbers:
https://opentelemetry.io/docs/specs/otel/logs/data-model/#field-severitynumber
"""

from __future__ import annotations

# For the numbers 1-4, 5-8, 9-12, 13-16, 17-20, 21-24.
_BY_NUMBER = ("trace", "debug", "info", "warning", "error", "critical")
_BY_TEXT = {"warn": "warning", "err": "error", "fatal": "critical", "information": "info", "notice": "info"}
_ALSO = {"warning": "warn", "critical": "fatal"}


def level_of(number: int, text: str) -> str:
    """The level of an OTLP severity, in lower case; empty if neither argument names one.

    Args:
        number: severity number, 0 for none.
        text: the sender's own word, used if there is no number.
    """
    if 1 <= number <= 24:
        return _BY_NUMBER[(number - 1) // 4]
    word = text.strip().lower()
    return _BY_TEXT.get(word, word)


def search_words(level: str) -> list[str]:
    """All words for a level: some senders write `warn`, others `warning`."""
    return [level, _ALSO[level]] if level in _ALSO else [level]
