"""Packages of this repository, installed into a folder of a test's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
PLUGIN = _ROOT / "examples" / "plugin"
CLIENT = _ROOT / "clients" / "python"
MODULES = ("example_method", "example_operators", "example_source")


def install(folder: Path, package: Path) -> None:
    """Installs a package into a folder, as any user would."""
    uv = Path(sys.prefix) / "bin" / "uv"
    command = [str(uv), "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--offline"]
    subprocess.run([*command, "--python", sys.executable, "--target", str(folder), str(package)], check=True)


@contextmanager
def example_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example plugin, installed and importable by this process."""
    install(folder, PLUGIN)
    monkeypatch.syspath_prepend(folder)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def entry_point(folder: Path, monkeypatch: pytest.MonkeyPatch, group: str, line: str) -> None:
    """Adds an installed package that declares one entry point, `line`, in a group."""
    metadata = folder / "broken_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{line}\n")
    monkeypatch.syspath_prepend(folder)
