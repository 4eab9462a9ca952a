"""What two places need stands once: no two share more than 12 equal lines, outside generated and foreign files."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = ("protos/gen/", "protos/vendor/")
KINDS = ("*.py", "*.proto", "*.yaml", "*.sh", "*.md", "Makefile")
LIMIT = 12


def duplicates(files: Iterable[Path]) -> list[str]:
    """Pairs of places that share more than `LIMIT` equal lines in a row, without empty lines and indents."""
    lines = {
        file: [(number, line.strip()) for number, line in enumerate(file.read_text().splitlines(), 1) if line.strip()]
        for file in files
    }
    places: defaultdict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    for file, numbered in lines.items():
        texts = [text for _, text in numbered]
        for at in range(len(texts) - LIMIT):
            places[tuple(texts[at : at + LIMIT + 1])].append((file, numbered[at][0]))
    return [
        " and ".join(f"{file}:{number}" for file, number in found) + f": {run[0]}"
        for run, found in places.items()
        if len(found) > 1
    ]


def test_no_two_places_share_more_than_twelve_lines() -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--", *KINDS], capture_output=True, text=True, check=False
    ).stdout.split()
    if not listed:
        pytest.skip("not a git repository")
    files = [ROOT / name for name in listed if not name.startswith(FOREIGN)]
    assert len(files) > 300
    assert duplicates(file for file in files if file.exists()) == []


@pytest.mark.parametrize(("shared", "found"), [(LIMIT, 0), (LIMIT + 1, 1)])
def test_a_longer_run_of_equal_lines_is_found_whatever_its_indent(tmp_path: Path, shared: int, found: int) -> None:
    run = [f"step_{number}()" for number in range(shared)]
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("\n".join(["first()", *run]))
    other.write_text("\n\n".join(["second()", *("    " + line for line in run)]))
    assert len(duplicates([one, other])) == found
