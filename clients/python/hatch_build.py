"""Puts the generated messages that the client needs into its wheel, below a package of their own."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_GENERATED = Path("../../protos/gen")
_SERVICES = ("tidemill/inference/v1/inference_service", "tidemill/pipeline/v1/pipeline_service")
_IMPORT = re.compile(r"^(from|import) ((?:tidemill|buf)(?:\.\w+)*)(?: import (\w+))?", re.MULTILINE)
_PACKAGE = "tidemill_client._protos"


class StubsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Named in pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the wheel is written."""
        if version == "editable":
            raise RuntimeError("tidemill-client cannot be installed editable: its messages are put into the wheel")
        self._folder = Path(tempfile.mkdtemp(prefix="tidemill-client-"))
        _place(Path(self.root) / _GENERATED, self._folder)
        build_data["force_include"][str(self._folder)] = _PACKAGE.replace(".", "/")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """After it was written."""
        shutil.rmtree(self._folder)


def _place(generated: Path, folder: Path) -> None:
    """Copies the services' modules and all that they import, with their imports pointing at each other."""
    if not generated.is_dir():
        raise RuntimeError(f"{generated} is missing: build the client inside a checkout of Tidemill")
    pending, placed = [f"{name}_pb2{kind}" for name in _SERVICES for kind in ("", "_grpc")], set[str]()
    while pending:
        name = pending.pop()
        if name in placed:
            continue
        placed.add(name)
        for suffix in (".py", ".pyi"):
            source = generated / f"{name}{suffix}"
            if not source.is_file():
                continue
            text = source.read_text(encoding="utf-8")
            pending += [
                f"{package.replace('.', '/')}/{module}"
                for _, package, module in _IMPORT.findall(text)
                if module and module.endswith("_pb2")
            ]
            target = folder / f"{name}{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_IMPORT.sub(_ours, text), encoding="utf-8")
    for package in {folder, *(path for path in folder.rglob("*") if path.is_dir())}:
        (package / "__init__.py").touch()


def _ours(match: re.Match[str]) -> str:
    return match[0].replace(match[2], f"{_PACKAGE}.{match[2]}", 1)
