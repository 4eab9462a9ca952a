"""Packages that bring plugins, installed into a folder of a test's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"
MODULES = ("example_method", "example_operators", "example_source")


def install_example(folder: Path) -> None:
    """Installs the example plugin into a folder, as any user would."""
    uv = Path(sys.prefix) / "bin" / "uv"
    command = [str(uv), "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--offline"]
    subprocess.run([*command, "--python", sys.executable, "--target", str(folder), str(PLUGIN)], check=True)


@contextmanager
def example_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example plugin, installed and importable by this process."""
    install_example(folder)
    monkeypatch.syspath_prepend(folder)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def entry_point(folder: Path, monkeypatch: pytest.MonkeyPatch, group: str, line: str) -> None:
    """An installed package that brings one thing."""
    metadata = folder / "broken_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{line}\n")
    monkeypatch.syspath_prepend(folder)
