"""The tests of walls and operation: all of `tests/faults`, and what the tables of boundaries name elsewhere.

The documents are the list: a boundary whose test is named there is run by `make faults`, with the mark `faults`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "docs" / "security.md", ROOT / "tests" / "faults" / "README.md")
_FAULTS = "tests/faults/"
_FOLDER = r"`(?P<whole>tests/(?:\w+/)+)`"
_TEST = r"`(?P<folder>tests/(?:\w+/)*)?(?P<file>test_\w+\.py|…|(?=::))(?:::(?P<test>test_\w+))?`"
_NAMED = re.compile(f"{_FOLDER}|{_TEST}")


@dataclass(frozen=True, slots=True)
class Named:
    """A test that a document names; a whole file if it names no function, a folder if `file` ends in a slash."""

    document: str
    file: str
    test: str | None


@functools.cache
def named() -> tuple[Named, ...]:
    """What the documents name. `test_b.py` lies beside the file before it in its line, else in `tests/faults`."""
    return tuple(each for document in DOCUMENTS for each in named_in(document.read_text("utf-8"), document.name))


def named_in(text: str, document: str = "") -> list[Named]:
    """What a document names, in its order; `…::test` and `::test` are in the file that was named before."""
    found: list[Named] = []
    last = ""
    for line in text.splitlines():
        folder = _FAULTS
        for match in _NAMED.finditer(line):
            if match["whole"]:
                found.append(Named(document, match["whole"], None))
                continue
            folder = match["folder"] or folder
            last = f"{folder}{match['file']}" if match["file"].startswith("test_") else last
            found.append(Named(document, last, match["test"]))
    return found


def is_boundary(test: str) -> bool:
    """Whether a test, by its id, is one of a wall or of operation."""
    file, _, function = test.partition("::")
    names = {
        each.test for each in named() if file == each.file or (each.file.endswith("/") and file.startswith(each.file))
    }
    return file.startswith(_FAULTS) or None in names or function.rpartition("::")[2].partition("[")[0] in names


def mark(items: list[pytest.Item]) -> None:
    """Marks them, for `pytest -m faults`."""
    for item in items:
        if is_boundary(item.nodeid):
            item.add_marker("faults")
