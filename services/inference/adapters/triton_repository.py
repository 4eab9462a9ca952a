"""The model repository on disk: `<model>/config.pbtxt` and `<model>/<number>/`.

A version's folder is put together beside the repository, where Triton does not look, and renamed into its place; its
weights are hard links to the artefact where both lie on one file system. The configuration is replaced by a rename,
too. Triton reads both only when it is told to load (explicit mode), so nothing it may be reading is ever changed.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.inference import triton_models
from services.inference.adapters.triton_config import render_config
from services.inference.domain.model import ModelVersion, Task
from services.kit import prompts
from services.kit.errors import FailedPreconditionError, ResourceExhaustedError
from services.kit.ids import new_id

MARKER = "tidemill-version.json"
CODE_PACKAGE = "tidemill_model"
_ENTRY = '"""Entry for Triton; the code is in the package beside it."""\n\nfrom {package}.{module} import TritonPythonModel\n\n__all__ = ["TritonPythonModel"]\n'  # noqa: E501
_MODULES = {Task.GENERATION: "generation", Task.TEXT_CLASSIFICATION: "classification"}


class TritonRepository:
    """Implements `services.inference.app.ports.Repository`."""

    def __init__(self, root: Path, staging: Path, otlp_endpoint: str | None) -> None:
        """Args:
        root: the folder that Triton serves from.
        staging: a folder outside it on the same file system.
        otlp_endpoint: see `render_config`.
        """
        self._root = root
        self._staging = staging
        self._otlp_endpoint = otlp_endpoint

    def place(self, version: ModelVersion, build: Path) -> None:
        """See the port."""
        if self.holds(version):
            return
        with self._disk_errors():
            self._place(version, build)

    def _place(self, version: ModelVersion, build: Path) -> None:
        target = self._folder(version.model, version.number)
        partial = self._new_staged(f"{version.model}-{version.number}")
        try:
            _copy_tree(build, partial / "build")
            code = Path(triton_models.__file__).parent
            (partial / CODE_PACKAGE).mkdir()
            # Prompts are built by the kit's own module, in place of the one that only names it.
            for module in (*sorted(code.glob("*.py")), Path(prompts.__file__)):
                shutil.copyfile(module, partial / CODE_PACKAGE / module.name)
            entry = _ENTRY.format(package=CODE_PACKAGE, module=_MODULES[version.build.task])
            (partial / "model.py").write_text(entry, encoding="utf-8")
            marker = {"digest": version.lineage.digest, "run": version.lineage.run, "name": version.name}
            (partial / MARKER).write_text(json.dumps(marker), encoding="utf-8")
            target.parent.mkdir(parents=True, exist_ok=True)
            # A folder of this number with another digest is of a repository whose history was lost.
            self._discard(target)
            self._rename(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def holds(self, version: ModelVersion) -> bool:
        """See the port."""
        marker = self._folder(version.model, version.number) / MARKER
        try:
            return bool(json.loads(marker.read_text(encoding="utf-8"))["digest"] == version.lineage.digest)
        except (FileNotFoundError, ValueError, KeyError):
            # Not there, or cut off with the power: it is placed anew.
            return False

    def configure(self, version: ModelVersion) -> None:
        """See the port."""
        with self._disk_errors():
            self._configure(version)

    def _configure(self, version: ModelVersion) -> None:
        folder = self._root / version.model
        folder.mkdir(parents=True, exist_ok=True)
        partial = self._new_staged(f"{version.model}-config")
        try:
            file = partial / "config.pbtxt"
            file.write_text(render_config(version, self._otlp_endpoint, new_id()), encoding="utf-8")
            self._rename(file, folder / "config.pbtxt")
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def remove(self, model: str, number: int) -> None:
        """See the port."""
        with self._disk_errors():
            self._discard(self._folder(model, number))

    def clear_staging(self) -> None:
        """Removes what a killed process left; call it once, at start."""
        shutil.rmtree(self._staging, ignore_errors=True)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = {"folder": str(self._root)}
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceExhaustedError(
                    f"The disk of {self._root} is full; free some of it.",
                    reason="DISK_FULL",
                    metadata=where,
                    retry_after_s=10.0,
                ) from error
            raise FailedPreconditionError(
                f"{self._root} or {self._staging} cannot be written: {error.strerror or error}.",
                reason="REPOSITORY_NOT_WRITABLE",
                metadata=where,
            ) from error

    def _folder(self, model: str, number: int) -> Path:
        return self._root / model / str(number)

    def _new_staged(self, name: str) -> Path:
        partial = self._staging / f"{name}.{new_id()}"
        partial.mkdir(parents=True)
        return partial

    def _discard(self, folder: Path) -> None:
        """Takes a folder away at once, then deletes it."""
        if not folder.exists():
            return
        aside = self._new_staged(folder.name)
        self._rename(folder, aside / "old")
        shutil.rmtree(aside, ignore_errors=True)

    def _rename(self, source: Path, target: Path) -> None:
        try:
            source.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise FailedPreconditionError(
                f"{self._staging} and {self._root} lie on different file systems, so nothing can be put in place at "
                "once; set TIDEMILL_TRITON_STAGING to a folder on the repository's.",
                reason="STAGING_ON_OTHER_FILE_SYSTEM",
            ) from error


def _copy_tree(source: Path, target: Path) -> None:
    """Links or copies all files. Not shutil's: that gathers errors and loses which they were."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(path, copy)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        # Another file system, or one without hard links.
        shutil.copyfile(source, target)
