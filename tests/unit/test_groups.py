"""What shares its parts runs in one worker, and the groups that begin first exist."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.groups import FOLDER, LONGEST, group

# Quick, and of several tests.
_FILE = "tests/faults/test_reconciler.py"


def test_the_tests_of_a_group_run_in_one_worker() -> None:
    command = [sys.executable, "-m", "pytest", "-vv", "-n", "2", "--dist", "loadgroup", _FILE]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    workers = re.findall(rf"^\[(gw\d)\] .*PASSED {_FILE}::", done.stdout, re.MULTILINE)
    assert len(workers) > 1, done.stdout
    assert len(set(workers)) == 1, done.stdout


def test_the_longest_groups_exist() -> None:
    files = [file.relative_to(FOLDER.parent).as_posix() for file in FOLDER.rglob("test_*.py")]
    assert set(LONGEST) <= {group(f"{file}::test") for file in files}


def test_unit_tests_may_run_anywhere() -> None:
    assert group("tests/unit/test_groups.py::a") != group("tests/unit/test_groups.py::b")
