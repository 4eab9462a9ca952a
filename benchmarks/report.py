"""docs/benchmarks.md: each benchmark replaces its own section."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def write_section(file: Path, name: str, lines: Sequence[str]) -> None:
    """Replaces what stands between the section's marks."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = "\n".join([begin, *lines, end])
    text = file.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{file} has no section {name}: it wants the lines {begin} and {end}.")
    file.write_text(pattern.sub(lambda _: section, text), encoding="utf-8")
