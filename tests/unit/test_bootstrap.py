"""What the set-up takes for a usable `.venv`: a whole one of the very Python that was asked for."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from infra import bootstrap

# It runs on any Python 3, so it has no types.
is_usable: Callable[[str, str], bool] = bootstrap.is_usable


def test_this_environment_is_usable() -> None:
    programs = Path(sys.prefix) / "bin"
    assert is_usable(str(programs / "python"), str(programs / "uv"))


def test_an_environment_whose_making_broke_off_is_made_again(tmp_path: Path) -> None:
    assert not is_usable(str(tmp_path / "bin" / "python"), str(tmp_path / "bin" / "uv"))
    venv.create(tmp_path, with_pip=False)
    assert not is_usable(str(tmp_path / "bin" / "python"), str(tmp_path / "bin" / "uv"))


def test_an_environment_of_another_python_is_made_again(tmp_path: Path) -> None:
    other, uv = tmp_path / "python", tmp_path / "uv"
    uv.touch()
    other.write_text("#!/bin/sh\necho '3.11.0 (another build)'\n")
    other.chmod(0o755)
    assert not is_usable(str(other), str(uv))


def run_step(*program: str) -> subprocess.CompletedProcess[str]:
    """A set-up step in a process of its own, for a failed one ends it."""
    step = (
        f"from infra import bootstrap; bootstrap.run({[sys.executable, *program]!r}, 'The step', 'tidemill: working')"
    )
    return subprocess.run([sys.executable, "-c", step], capture_output=True, text=True, cwd=bootstrap.ROOT, check=False)


def test_a_step_is_one_line_however_much_it_prints() -> None:
    done = run_step("-c", "for number in range(260): print('+ package', number)")
    assert done.returncode == 0
    assert done.stderr == ""
    assert re.fullmatch(r"tidemill: working \(\d+ s\)\n", done.stdout)


def test_a_failed_step_shows_all_of_its_output() -> None:
    done = run_step("-c", "import sys; print('resolving'); sys.exit('no such package')")
    assert done.returncode == 1
    assert "resolving" in done.stderr
    assert "no such package" in done.stderr
    assert "tidemill: The step failed" in done.stderr
