"""The Makefile finds the Python that a checkout was set up with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def _setup_command(folder: Path) -> str:
    path = "/usr/bin:/bin"
    return subprocess.run(
        ["make", "-n", "setup"], cwd=folder, env={"PATH": path}, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_checkout_stays_with_the_python_of_its_environment(tmp_path: Path, is_there: bool) -> None:
    """Before, `make down` after `make PYTHON=… run` made the environment again, with another Python."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    assert _setup_command(tmp_path).endswith("infra/bootstrap.py")
    python = tmp_path / "python-of-its-own"
    if is_there:
        python.symlink_to(sys.executable)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "pyvenv.cfg").write_text(f"home = /usr/bin\nexecutable = {python}\n")
    assert (_setup_command(tmp_path) == f"{python} infra/bootstrap.py") == is_there
