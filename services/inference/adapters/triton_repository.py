"""The model repository on disk: `<model>.<number>/config.pbtxt` and `<model>.<number>/<number>/`.

Each version is a Triton model of its own, so that versions of one model are loaded side by side, and loading one
disturbs no other (docs/adr/0018).

A version's folder is assembled outside the repository, where Triton does not look, and renamed into place. Its
weights are copies, never hard links: what overwrites one of the two would else overwrite both. Where the file system
can, a copy shares its blocks until one side is written. The configuration is replaced by a rename, too. Triton reads
both only on a load request (explicit mode), so nothing it may be reading is ever changed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from services.inference import triton_models
from services.inference.adapters.tasks import TASKS
from services.inference.adapters.triton_config import render_config
from services.inference.domain.model import ModelVersion
from services.kit import engine, json_grammar, labels, prompts, spans
from services.kit.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError
from services.kit.ids import new_id
from services.kit.probes import Probes
from services.kit.storage.artifacts import digest_files, file_digest, files_below
from services.kit.storage.signing import DAMAGED, MANIFEST, TrustedKeys
from services.serving.domain.answer import Task
from services.serving.domain.names import server_model

MARKER = "tidemill-version.json"
CODE_PACKAGE = "tidemill_model"
_ENTRY = '"""Entry for Triton; the code is in the package beside it."""\n\nfrom {package}.{module} import TritonPythonModel\n\n__all__ = ["TritonPythonModel"]\n'  # noqa: E501
_BUILD = "build"
_PYCACHE = "__pycache__"
# The ioctl FICLONE of linux/fs.h: a copy that shares its blocks with the original until one of them is written.
_FICLONE = 0x40049409


class TritonRepository:
    """Implements `services.inference.app.ports.Repository`."""

    def __init__(self, root: Path, staging: Path, trusted: TrustedKeys, otlp_endpoint: str | None) -> None:
        """Args:
        root: the folder that Triton serves from.
        staging: a folder outside it on the same file system.
        trusted: keys whose builds may be loaded.
        otlp_endpoint: see `render_config`.
        """
        self._trusted = trusted
        self._root = root
        self._staging = staging
        self._otlp_endpoint = otlp_endpoint

    def place(self, version: ModelVersion, build: Path) -> None:
        """See the port."""
        with self._disk_errors():
            self._place(version, build)

    def _place(self, version: ModelVersion, build: Path) -> None:
        target = self._folder(version.model, version.number)
        partial = self._new_staged(f"{version.model}-{version.number}")
        try:
            _copy_tree(build, partial / _BUILD)
            code = _code(version.build.task)
            for name, content in code.items():
                (partial / name).parent.mkdir(exist_ok=True)
                (partial / name).write_bytes(content)
            marker = {
                "digest": version.lineage.digest,
                "run": version.lineage.run,
                "name": version.name,
                "code": _code_digest(code),
            }
            (partial / MARKER).write_text(json.dumps(marker), encoding="utf-8")
            target.parent.mkdir(parents=True, exist_ok=True)
            # Damaged, of another release, or of a repository whose database was lost.
            self._discard(target)
            self._rename(partial, target)
            self._discard(self._root / version.model / str(version.number))
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def holds(self, version: ModelVersion) -> bool:
        """See the port."""
        file = self._folder(version.model, version.number) / MARKER
        try:
            marker = json.loads(file.read_text(encoding="utf-8"))
            code = _code_digest(_code(version.build.task))
            return bool(marker["digest"] == version.lineage.digest and marker["code"] == code)
        except (OSError, ValueError, KeyError, TypeError):
            # Missing, incomplete after a power cut, or of a release before signed builds: it is placed again.
            return False

    def good_build(self, version: ModelVersion) -> Path | None:
        """See the port."""
        # Releases before routes of several versions kept all versions of a model in one folder.
        earlier = self._root / version.model / str(version.number)
        for folder in (self._folder(version.model, version.number), earlier):
            try:
                self._verify_build(version, folder / _BUILD)
            except (FailedPreconditionError, OSError):
                continue
            return folder / _BUILD
        return None

    def verify(self, version: ModelVersion) -> None:
        """See the port."""
        folder = self._folder(version.model, version.number)
        try:
            self._verify_build(version, folder / _BUILD)
            self._verify_code(version, folder)
        except OSError as error:
            raise _damaged(version, str(error.filename or folder), "a file", str(error.strerror or error)) from error

    def _verify_build(self, version: ModelVersion, build: Path) -> None:
        self._trusted.verify_build(build, version.lineage.digest)

    def _verify_code(self, version: ModelVersion, folder: Path) -> None:
        """Whether everything except the build is this release's code, with no further files."""
        expected = {name: _sha256(content) for name, content in _code(version.build.task).items()}
        found: dict[str, str] = {}
        for path in _files(folder):
            name = path.relative_to(folder).as_posix()
            if name != MARKER and not name.startswith(f"{_BUILD}/"):
                found[name] = "a link" if path.is_symlink() else file_digest(path)
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise _damaged(version, name, expected.get(name, "no such file"), found.get(name, "no such file"))

    def probes(self, version: ModelVersion) -> Probes | None:
        """See the port."""
        file = self._folder(version.model, version.number) / _BUILD / MANIFEST
        try:
            return Probes.read(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise InvalidArgumentError(f"The build of {version.name}: {error}.", reason="UNUSABLE_BUILD") from error

    def stamp(self, version: ModelVersion) -> object:
        """See the port."""
        folder = self._folder(version.model, version.number)
        seen: list[tuple[object, ...]] = []
        for path in _files(folder):
            try:
                found = path.lstat()
            except FileNotFoundError:
                continue
            seen.append((str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode))
        return frozenset(seen), self._trusted.names()

    def configure(self, version: ModelVersion) -> None:
        """See the port."""
        with self._disk_errors():
            self._configure(version)

    def _configure(self, version: ModelVersion) -> None:
        folder = self._root / version.server_model
        folder.mkdir(parents=True, exist_ok=True)
        # Python may leave byte code next to the code, and would run it unverified, so it is removed before a load.
        for left in list(self._folder(version.model, version.number).rglob(_PYCACHE)):
            shutil.rmtree(left, ignore_errors=True)
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
            self._discard(self._root / server_model(model, number))
            self._discard(self._root / model / str(number))

    def clear_staging(self) -> None:
        """Removes leftovers of a killed process; call it once, at start."""
        shutil.rmtree(self._staging, ignore_errors=True)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = {"folder": str(self._root)}
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceExhaustedError(
                    f"The disk of {self._root} is full. Free some space.",
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
        return self._root / server_model(model, number) / str(number)

    def _new_staged(self, name: str) -> Path:
        partial = self._staging / f"{name}.{new_id()}"
        partial.mkdir(parents=True)
        return partial

    def _discard(self, folder: Path) -> None:
        """Renames a folder out of the way, then deletes it."""
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
                f"{self._staging} and {self._root} are on different file systems, so nothing can be put in place at "
                "once; set TIDEMILL_TRITON_STAGING to a folder on the repository's.",
                reason="STAGING_ON_OTHER_FILE_SYSTEM",
            ) from error


def _files(folder: Path) -> Iterator[Path]:
    """All files of a version but byte code."""
    return (path for path in files_below(folder) if _PYCACHE not in path.relative_to(folder).parts)


def _code(task: Task) -> dict[str, bytes]:
    """The code of a version's folder, by path: the entry that Triton imports, and the package that it imports."""
    entry = _ENTRY.format(package=CODE_PACKAGE, module=TASKS[task].module)
    package = Path(triton_models.__file__).parent
    # The kit's own modules, in place of those that only name them.
    shared = (Path(str(module.__file__)) for module in (engine, json_grammar, labels, prompts, spans))
    files = {path.name: path for path in (*sorted(package.glob("*.py")), *shared)}
    modules = {f"{CODE_PACKAGE}/{name}": path.read_bytes() for name, path in files.items()}
    return {"model.py": entry.encode(), **modules}


def _code_digest(code: Mapping[str, bytes]) -> str:
    return digest_files({name: _sha256(content) for name, content in code.items()})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _damaged(version: ModelVersion, file: str, expected: str, found: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"The files of {version.name} are refused: {file} is damaged: expected {expected}, found {found}.",
        reason=DAMAGED,
        metadata={"version": version.name, "file": file, "expected": expected, "found": found},
    )


def _copy_tree(source: Path, target: Path) -> None:
    """Copies all files. Not shutil's: that gathers errors and loses which they were."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            _copy(path, copy)
            # Served files are never written to, and read by whom the process's umask allows.
            copy.chmod(copy.stat().st_mode & 0o444)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        try:
            fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
            return
        except OSError:
            # This file system has no such copies, or the two are on different ones.
            pass
    shutil.copyfile(source, target)
