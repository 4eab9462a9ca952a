"""Turns tokens into text, piece by piece: only whole characters, and never part of a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"


class IncrementalDecoder:
    """Turns a growing list of tokens into text that only ever grows.

    A token may end within a character (byte-level BPE) or change how its neighbour is written (spaces), so the text
    of a piece is the difference between two decodings that start at the same token.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """Args:
        decode: text of a list of tokens; incomplete characters become U+FFFD.
        """
        self._decode = decode
        self._tokens: list[int] = []
        # Tokens before `_start` are finished; those from there to `_sent` have been sent and give context.
        self._start = 0
        self._sent = 0

    def push(self, token: int) -> str:
        """Text that is certain now; empty while a character is incomplete."""
        self._tokens.append(token)
        before, after = self._texts()
        if after.endswith(_INCOMPLETE):
            return ""
        self._start, self._sent = self._sent, len(self._tokens)
        return after[len(before) :]

    def flush(self) -> str:
        """What is left at the end, without a character that the limit of tokens cut in two."""
        before, after = self._texts()
        self._start = self._sent = len(self._tokens)
        return after[len(before) :].rstrip(_INCOMPLETE)

    def _texts(self) -> tuple[str, str]:
        return self._decode(self._tokens[self._start : self._sent]), self._decode(self._tokens[self._start :])


class StopTexts:
    """Ends an answer where one of some texts begins; holds back text that may be such a beginning."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Adds text; returns what may be sent, and whether the answer ends here."""
        if not self._stops:
            return text, False
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            ready, self._held = self._held[: min(found)], ""
            return ready, True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        ready = self._held[: len(self._held) - keep]
        self._held = self._held[len(ready) :]
        return ready, False

    def flush(self) -> str:
        """The text that was held back, once no more text arrives."""
        ready, self._held = self._held, ""
        return ready


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
