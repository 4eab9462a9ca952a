"""The folders below which base models may lie: what the settings name, and what `tidemill run` allowed since."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from services.kit.errors import FieldViolation, InvalidArgumentError, PermissionDeniedError
from services.kit.source_roots import read_roots
from services.kit.storage.artifacts import files_below

# Wherever a root is: their files come from the kernel, about this process, too.
_NEVER = (Path("/proc"), Path("/sys"), Path("/dev"))


class ModelRoots:
    """Says which folders may be read as base models. Thread-safe."""

    def __init__(self, fixed: Sequence[Path], file: Path | None = None) -> None:
        """Reads no file yet.

        Args:
            fixed: absolute folders.
            file: the file that `services.kit.source_roots` writes.
        """
        self._fixed, self._file = fixed, file

    def check(self, folder: Path) -> None:
        """Refuses a folder that is not below a root, before anything in it is looked at.

        Its files are checked, too: a link may lead from one to a file elsewhere.

        Raises:
            InvalidArgumentError: it is not an absolute path, or contains `..`.
            PermissionDeniedError: it is outside all roots, or leads there through a symbolic link.
            FailedPreconditionError: see `services.kit.source_roots.read_roots`.
        """
        if not folder.is_absolute() or ".." in folder.parts or "\0" in str(folder):
            wrong = f"{folder} is not the absolute path of a folder without `..`"
            raise InvalidArgumentError(
                f"spec.base_model: {wrong}.",
                reason="INVALID_BASE_MODEL",
                violations=[FieldViolation("spec.base_model", wrong)],
            )
        added = read_roots(self._file) if self._file is not None else []
        roots = [root.resolve() for root in (*self._fixed, *(Path(root) for root in added if root.startswith("/")))]
        if not _leads_below(folder, roots):
            raise _outside(folder)
        for path in files_below(folder) if (folder / "config.json").exists() else ():
            if not _leads_below(path, roots):
                raise _outside(path)


def _leads_below(path: Path, roots: Sequence[Path]) -> bool:
    try:
        real = path.resolve()
    except (OSError, RuntimeError):
        # A loop of links, or a name that no file system accepts.
        return False
    return any(real.is_relative_to(root) for root in roots) and not any(real.is_relative_to(each) for each in _NEVER)


def _outside(path: Path) -> PermissionDeniedError:
    wrong = (
        f"{path} is outside the folders that base models may lie in. Run the pipeline with `tidemill run --allow "
        "FOLDER` on the machine of the mesh, or name the folder in TIDEMILL_MODEL_ROOTS"
    )
    return PermissionDeniedError(
        f"spec.base_model: {wrong}.",
        reason="OUTSIDE_MODEL_ROOTS",
        metadata={"base_model": str(path)},
        violations=[FieldViolation("spec.base_model", wrong)],
    )
