"""The artefact store: folders of files by fsspec URL, a local folder by default, `s3://` by URL.

A folder becomes visible whole: locally by rename, on an object store by its manifest, which is written last.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection
from pathlib import Path
from urllib.parse import unquote, urlparse

import fsspec

from services.kit.errors import FailedPreconditionError, NotFoundError
from services.kit.ids import new_id


def digest_folder(folder: Path, *, without: Collection[str] = ()) -> str:
    """sha256 over the names and contents of all files below a folder, in order of their names.

    Args:
        folder: the folder.
        without: files to leave out, relative to it: a manifest that carries the digest.
    """
    total = hashlib.sha256()
    left_out = {folder / name for name in without}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p not in left_out):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


def local_path(uri: str) -> Path | None:
    """The path behind a `file://` URL or a bare path; None for a remote one."""
    parsed = urlparse(uri)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    return None if parsed.scheme else Path(uri)


class ArtifactStore:
    """Folders under one root URL."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    def uri(self, *parts: str) -> str:
        """URL of something below the root."""
        return "/".join((self.root, *parts))

    def exists(self, uri: str) -> bool:
        """Whether a file or folder is there."""
        filesystem, path = fsspec.core.url_to_fs(uri)
        return bool(filesystem.exists(path))

    def put_folder(self, source: Path, uri: str) -> None:
        """Stores a folder under a URL, whole or not at all; content that is there already stays.

        Files whose name starts with `manifest` are uploaded last.
        """
        target = local_path(uri)
        if target is not None:
            if target.exists():
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{new_id()}")
            shutil.copytree(source, partial)
            try:
                partial.rename(target)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)
                if not target.exists():
                    raise
            return
        filesystem, path = fsspec.core.url_to_fs(uri)
        files = sorted(p for p in source.rglob("*") if p.is_file())
        for item in sorted(files, key=lambda p: p.name.startswith("manifest")):
            filesystem.put_file(str(item), f"{path}/{item.relative_to(source).as_posix()}")

    def fetch_folder(self, uri: str, cache: Path) -> Path:
        """A local folder with the content of a URL: the folder itself where it is local, else a copy in `cache`.

        Raises:
            NotFoundError: nothing is there.
        """
        own = local_path(uri)
        if own is not None:
            if not own.is_dir():
                raise NotFoundError(f"The artefact folder {uri} does not exist.", metadata={"uri": uri})
            return own
        filesystem, path = fsspec.core.url_to_fs(uri)
        if not filesystem.exists(path):
            raise NotFoundError(f"The artefact folder {uri} does not exist.", metadata={"uri": uri})
        target = cache / hashlib.sha256(uri.encode()).hexdigest()[:32]
        if target.is_dir():
            return target
        partial = target.with_name(f"{target.name}.{new_id()}")
        filesystem.get(path, str(partial), recursive=True)
        try:
            partial.rename(target)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not target.is_dir():
                raise FailedPreconditionError(f"Cannot write to the artefact cache {cache}: {error}") from error
        return target
