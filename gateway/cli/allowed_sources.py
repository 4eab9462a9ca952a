"""Allows imports to read the folder of a pipeline that is run from this machine, and what `--allow` names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from services.kit.config import state_dir
from services.kit.errors import InvalidArgumentError
from services.kit.source_roots import FILE_NAME, add_roots

if TYPE_CHECKING:
    from gateway.cli.pipeline_file import PipelineFile


def allow_sources(file: PipelineFile, more: Sequence[str] = ()) -> None:
    """Lets the mesh of this machine read the file's folder and the given roots.

    A file directly in the home folder allows nothing, since keys and passwords are there, too.

    Raises:
        InvalidArgumentError: a root is too wide, does not exist, or is neither a folder nor s3://.
    """
    folder = file.path.resolve().parent
    roots = [] if _is_too_wide(folder) else [str(folder)]
    if data := os.environ.get("TIDEMILL_DATA"):
        # `${TIDEMILL_DATA}` of a pipeline's file, as this person set it.
        more = [*more, data]
    add_roots(state_dir() / FILE_NAME, [*roots, *(_named(root) for root in more)])


def _named(root: str) -> str:
    if root.startswith("s3://") and len(root) > len("s3://"):
        return root.rstrip("/")
    folder = Path(root).expanduser().resolve()
    if not folder.is_dir():
        raise InvalidArgumentError(f"--allow {root} is neither a folder nor an s3:// URL.", reason="SOURCE_ROOTS")
    if _is_too_wide(folder):
        raise InvalidArgumentError(
            f"--allow {root} would include keys and passwords; name the folder of the data itself.",
            reason="SOURCE_ROOTS",
        )
    return str(folder)


def _is_too_wide(folder: Path) -> bool:
    """Whether it contains a home folder, the mesh's state or the system."""
    return any(place.is_relative_to(folder) for place in (Path.home().resolve(), Path("/etc"), state_dir().resolve()))
