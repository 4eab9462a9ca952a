"""Templates, style sheets and scripts are in the package that users install."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
_RENDER = """
import sys
sys.path.insert(0, sys.argv[1])
from gateway.cards import forms
from gateway.console import rendering
assert rendering.__file__.startswith(sys.argv[1]), rendering.__file__
print(rendering.render(rendering.environment(), "sign_in.html", root="/console", target="/", why="", max_person=64))
forms._template()
"""


def test_an_installed_console_finds_its_files(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    for kind in ("templates", "static"):
        there = {path.name for path in (tmp_path / "installed" / "gateway" / "console" / kind).iterdir()}
        assert there == {path.name for path in (ROOT / "gateway" / "console" / kind).iterdir()}
    shown = subprocess.run(
        [sys.executable, "-P", "-c", _RENDER, str(tmp_path / "installed")],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "Sign in" in shown.stdout
