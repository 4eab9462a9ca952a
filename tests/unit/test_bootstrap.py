"""What the set-up takes for a usable `.venv`: a whole one of the very Python that was asked for."""

from __future__ import annotations

import sys
import venv
from collections.abc import Callable
from pathlib import Path

from infra import bootstrap

# It runs on any Python 3, so it bears no types.
is_usable: Callable[[str, str], bool] = bootstrap.is_usable


def test_this_environment_is_usable() -> None:
    programs = Path(sys.prefix) / "bin"
    assert is_usable(str(programs / "python"), str(programs / "uv"))


def test_an_environment_whose_making_broke_off_is_made_anew(tmp_path: Path) -> None:
    assert not is_usable(str(tmp_path / "bin" / "python"), str(tmp_path / "bin" / "uv"))
    venv.create(tmp_path, with_pip=False)
    assert not is_usable(str(tmp_path / "bin" / "python"), str(tmp_path / "bin" / "uv"))


def test_an_environment_of_another_python_is_made_anew(tmp_path: Path) -> None:
    other, uv = tmp_path / "python", tmp_path / "uv"
    uv.touch()
    other.write_text("#!/bin/sh\necho '3.11.0 (another build)'\n")
    other.chmod(0o755)
    assert not is_usable(str(other), str(uv))
