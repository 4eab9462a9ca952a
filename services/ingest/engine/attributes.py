"""Turns a producer's further data into attributes: every member is kept under a defined name, or a note says why not.

Names: a member whose name is a valid attribute name keeps it. Else `camelCase` becomes `camel_case`, nested members
are joined (`{"user": {"homeTown": "X"}}` is `user_home_town`), and any run of other characters becomes `_`. A name
that would be empty or begin with a digit gets the prefix `x_`; one with non-ASCII letters or more than 64
characters ends with 8 digits of its sha256. A name that is taken gets `_2`, `_3` and so on.

Values: text as it is; numbers and booleans as in JSON; lists, and objects nested more than 4 deep, as compact JSON;
null is left out.

Notes: text beyond 16 KiB is cut; longer lists, members beyond 64 attributes and numbers outside JSON are left out. Each
of these adds a line to the attribute `ingest_notes`, which exists only if there is something to note.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from services.ingest.domain.record import MAX_ATTRIBUTE_BYTES, MAX_ATTRIBUTES, is_attribute_name
from services.kit.ids import sha256_hex
from services.kit.json_text import NotANumber, repeated_names

NOTES_ATTRIBUTE = "ingest_notes"

_DEEPEST = 4
# No encoding makes such a text longer than an attribute may be.
_SHORT = MAX_ATTRIBUTE_BYTES // 4
_LONGEST_NAME = 64
_MAX_NOTES = 30
_NOTE_CHARACTERS = 200
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_OTHER = re.compile(r"[^a-z0-9]+")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Attributes:
    """Collects the attributes of one record, in order of importance."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []
        self._notes: list[str] = []

    def note(self, text: str) -> None:
        """Adds a note."""
        self._notes.append(_SURROGATE.sub("\ufffd", text)[:_NOTE_CHARACTERS])

    def add(self, name: str, value: Any, depth: int = 1) -> None:
        """Adds a member with any JSON value."""
        if isinstance(value, str):
            self._found.append((name, value if value.isascii() and len(value) <= _SHORT else self._cut(name, value)))
            return
        if value is None:
            return
        if isinstance(value, bytes):
            self.note(f"{name}: {len(value)} bytes that are not UTF-8 text; left out")
            return
        if isinstance(value, Mapping) and value and depth <= _DEEPEST:
            for twice in repeated_names(value):
                self.note(f"{name}.{twice}: occurs twice; the last one is kept")
            for key, item in value.items():
                self.add(f"{name}.{key}", item, depth + 1)
            return
        if isinstance(value, NotANumber) or (isinstance(value, float) and not math.isfinite(value)):
            self.note(f"{name}: {value} is not a JSON number; left out")
            return
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=lambda _: None)
        if len(text) > MAX_ATTRIBUTE_BYTES or len(text.encode("utf-8", "replace")) > MAX_ATTRIBUTE_BYTES:
            self.note(f"{name}: more than {MAX_ATTRIBUTE_BYTES} bytes; left out")
            return
        self._found.append((name, self._cut(name, text)))

    def result(self) -> dict[str, str]:
        """The named attributes; at most as many as a record may have."""
        names = self._names()
        kept = dict(zip(names, (text for _, text in self._found), strict=True))
        most = MAX_ATTRIBUTES - 1 if self._notes or len(kept) > MAX_ATTRIBUTES else MAX_ATTRIBUTES
        left_out = [path for path, _ in self._found][most:]
        if left_out:
            listed = ", ".join(left_out[:8]) + (" and others" if len(left_out) > 8 else "")
            self.note(f"{len(left_out)} of {len(kept)} members left out, the limit is {MAX_ATTRIBUTES}: {listed}")
            kept = dict(list(kept.items())[:most])
        if self._notes:
            more = len(self._notes) - _MAX_NOTES
            notes = [*self._notes[:_MAX_NOTES], *([f"and {more} more notes"] if more > 0 else [])]
            kept[_free(NOTES_ATTRIBUTE, set(kept))] = "\n".join(notes)
        return kept

    def _names(self) -> list[str]:
        """A name for each member; those that need no change come first."""
        names = [path if is_attribute_name(path) else "" for path, _ in self._found]
        taken: set[str] = set()
        for number, name in enumerate(names):
            if name:
                names[number] = _free(name, taken)
                taken.add(names[number])
        for number, (path, _) in enumerate(self._found):
            if not names[number]:
                names[number] = _free(attribute_name(path), taken)
                taken.add(names[number])
                if not path.isascii():
                    self.note(f"{names[number]}: named {path} by its producer")
        return names

    def _cut(self, name: str, text: str) -> str:
        if not text.isascii() and _SURROGATE.search(text):
            text = _SURROGATE.sub("\ufffd", text)
            self.note(f"{name}: what is not a character was replaced")
        if len(text) <= _SHORT:
            return text
        encoded = text.encode()
        if len(encoded) <= MAX_ATTRIBUTE_BYTES:
            return text
        self.note(f"{name}: {len(encoded)} bytes, cut to {MAX_ATTRIBUTE_BYTES}")
        return encoded[:MAX_ATTRIBUTE_BYTES].decode("utf-8", "ignore")


def attribute_name(path: str) -> str:
    """The attribute name for a member's path, as described in the module's docstring."""
    if is_attribute_name(path):
        return path
    name = _OTHER.sub("_", _CAMEL.sub("_", path).lower()).strip("_")
    if not name or name[0].isdigit():
        name = f"x_{name}".rstrip("_") if name else "x"
    if not path.isascii() or len(name) > _LONGEST_NAME or name == "x":
        mark = sha256_hex(path.encode("utf-8", "surrogatepass"))[:8]
        return f"{name[: _LONGEST_NAME - 9].rstrip('_')}_{mark}"
    return name


def _free(name: str, taken: set[str]) -> str:
    number, candidate = 2, name
    while candidate in taken:
        end = f"_{number}"
        candidate = name[: _LONGEST_NAME - len(end)] + end
        number += 1
    return candidate
