"""Reads the call of a function out of an answer, as its text arrives.

A model writes `<tool_call>`, a JSON object with `name` and `arguments`, and `</tool_call>`; the grammar that it follows
leaves no other form (`services.kit.json_grammar.call_grammar`). Text may come before it, nothing after it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from services.kit.json_grammar import CALL_BEGIN, CALL_END

_HEAD = re.compile(r'\s*\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')
# What follows the arguments: the end of the object, and the end of the call.
_TAIL = f"}}\n{CALL_END}"


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A part of a call: its name once, then pieces of its arguments, which are JSON together."""

    name: str = ""
    arguments: str = ""


class CallReader:
    """Splits an answer into text and a call. Feed it every piece, and `flush` at the end."""

    def __init__(self) -> None:
        self._held = ""
        self._in_call = False
        self._named = False
        self._ended = False

    @property
    def complete(self) -> bool:
        """Whether a whole call was read."""
        return self._ended

    def push(self, text: str) -> tuple[str, list[CallDelta]]:
        """Adds a piece; returns the text, and the parts of a call, that are certain now."""
        self._held += text
        said = ""
        if not self._in_call:
            at = self._held.find(CALL_BEGIN)
            if at < 0:
                said = self._release(CALL_BEGIN)
                return said, []
            said, self._held, self._in_call = self._held[:at], self._held[at + len(CALL_BEGIN) :], True
        deltas: list[CallDelta] = []
        if not self._named:
            head = _HEAD.match(self._held)
            if head is None:
                return said, []
            self._named, self._held = True, self._held[head.end() :]
            deltas.append(CallDelta(name=json.loads(head[1])))
        if self._held.endswith(_TAIL):
            self._ended, self._held = True, self._held[: -len(_TAIL)]
            if self._held:
                deltas.append(CallDelta(arguments=self._held))
            self._held = ""
        elif arguments := self._release(_TAIL):
            deltas.append(CallDelta(arguments=arguments))
        return said, deltas

    def flush(self) -> tuple[str, list[CallDelta]]:
        """What was held back, of an answer that ended within a call or just before one."""
        held, self._held = self._held, ""
        if self._in_call:
            return "", [CallDelta(arguments=held)] if held and self._named else []
        return held, []

    def _release(self, end: str) -> str:
        """The held text, but for a last part with which `end` may begin."""
        keep = next((n for n in range(min(len(end), len(self._held)), 0, -1) if end.startswith(self._held[-n:])), 0)
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return ready
