"""Allows imports to read the folder of a pipeline file that is run from this machine, and what `--allow` names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from services.kit.config import home_dir, state_dir
from services.kit.errors import FailedPreconditionError, InvalidArgumentError
from services.kit.source_roots import FILE_NAME, add_roots

if TYPE_CHECKING:
    from tidemill.ingest.v1.source_import_pb2 import SourceSpec

    from gateway.cli.pipeline_file import PipelineFile


def wanted_roots(file: PipelineFile, more: Sequence[str] = ()) -> list[str]:
    """What imports of this file may read: its folder, and the roots that the user names.

    A file directly in the home folder allows nothing, since keys and passwords are there, too.

    Raises:
        InvalidArgumentError: a root is too wide, does not exist, or is neither a folder nor s3://.
    """
    folder = file.path.resolve().parent
    roots = [] if _is_too_wide(folder) else [str(folder)]
    if data := os.environ.get("TIDEMILL_DATA"):
        # `${TIDEMILL_DATA}` in a pipeline file, as this user set it.
        more = [*more, data]
    return [*roots, *(_named(root) for root in more)]


def allow(roots: Sequence[str], file: PipelineFile) -> None:
    """Lets the mesh of this machine read these from now on.

    Raises:
        FailedPreconditionError: the mesh is running, and its user cannot read the folder of one of the file's sources.
    """
    add_roots(state_dir() / FILE_NAME, roots)
    uris = [uri for source in file.spec.sources if (uri := source_uri(source))]
    for root in roots:
        if any(Path(uri.removeprefix("file://")).is_relative_to(root) for uri in uris):
            _check_visible(root)


def unread_folder(file: PipelineFile, roots: Sequence[str]) -> str:
    """The folder of a file that has sources in it and may not be read; empty where there is none."""
    folder = file.path.resolve().parent
    paths = [Path(uri.removeprefix("file://")) for source in file.spec.sources if (uri := source_uri(source))]
    inside = [path for path in paths if path.is_relative_to(folder)]
    read = all(any(path.is_relative_to(root) for root in roots) for path in inside)
    return "" if read else str(folder)


def source_uri(source: SourceSpec) -> str:
    """The address of a source; empty for a plugin, whose package knows what it reads."""
    kind = source.WhichOneof("kind")
    return str(getattr(getattr(source, kind), "uri", "")) if kind else ""


def _check_visible(folder: str) -> None:
    """Checks that the running ingest service, which may be another user's process, can read the folder."""
    try:
        from infra.stack.layout import Layout
        from infra.stack.state import read_state
    except ModuleNotFoundError:  # the extra `cli` without `stack`: no mesh on this machine
        return
    child = read_state(Layout.of(home_dir(), state_dir())).children.get("ingest")
    if child is None or child.pid is None or os.access(f"/proc/{child.pid}/root{folder}", os.R_OK | os.X_OK):
        return
    owner = state_dir().stat().st_uid
    raise FailedPreconditionError(
        f"The mesh runs as the user {owner}, who cannot read {folder}: let others read it (chmod -R go+rX), then "
        "`tidemill down` and this again, which starts the mesh so that it sees the folder.",
        reason="SOURCE_NOT_READABLE",
    )


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
