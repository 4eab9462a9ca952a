"""What a person at this machine lets imports read: the folder of a pipeline that is run, and what `--allow` names."""

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
    """Lets the mesh of this machine read the file's folder, and what the person names.

    A file in the home folder itself allows nothing: keys and passwords lie there too.

    Raises:
        InvalidArgumentError: what the person names is too wide, is not there or is not s3:// or a folder.
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
        raise InvalidArgumentError(f"--allow {root}: is neither a folder nor an s3:// URL.", reason="SOURCE_ROOTS")
    if _is_too_wide(folder):
        raise InvalidArgumentError(
            f"--allow {root}: keys and passwords lie below it too; name the folder of the data itself.",
            reason="SOURCE_ROOTS",
        )
    return str(folder)


def _is_too_wide(folder: Path) -> bool:
    """Whether a home folder, the mesh's state or the system lies in it."""
    return any(place.is_relative_to(folder) for place in (Path.home().resolve(), Path("/etc"), state_dir().resolve()))
