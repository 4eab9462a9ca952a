"""The artefact store: folders of files by fsspec URL, a local folder by default, `s3://` by URL.

A folder becomes visible as a whole: locally by rename, on an object store by its manifest, which is uploaded last.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

import fsspec

from services.kit.errors import (
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    TidemillError,
    UnavailableError,
)
from services.kit.ids import new_id
from services.kit.whole_files import replacing


def file_digest(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_below(folder: Path) -> Iterator[Path]:
    """Everything below a folder except folders; links to folders are not followed."""
    return (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def digest_folder(folder: Path, *, without: Collection[str] = ()) -> str:
    """sha256 over the names and contents of all files below a folder, sorted by name.

    Args:
        folder: the folder.
        without: files to leave out, relative to it, such as a manifest that contains the digest.
    """
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return digest_files({name: file_digest(path) for name, path in files.items() if name not in without})


def digest_files(files: Mapping[str, str]) -> str:
    """The same as `digest_folder`, from the known sha256 of each file by relative path."""
    total = hashlib.sha256()
    for name in sorted(files, key=PurePosixPath):
        total.update(f"{name}\0{files[name]}\n".encode())
    return total.hexdigest()


def local_path(uri: str) -> Path | None:
    """The path of a `file://` URL or a bare path; None for a remote URL."""
    parsed = urlparse(uri)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    return None if parsed.scheme else Path(uri)


def _is_below(path: Path, root: Path) -> bool:
    """Whether a path leads below a folder without passing a symbolic link."""
    if not path.is_absolute():
        return False
    for spelled in (root, root.resolve()):
        if path.is_relative_to(spelled):
            inner = path.relative_to(spelled)
            try:
                return inner != Path() and path.resolve() == root.resolve() / inner
            except (OSError, RuntimeError):
                # A loop of links, or a name that no file system accepts.
                return False
    return False


def filesystem_of(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        InvalidArgumentError: no driver is installed for it.
    """
    try:
        # Other processes write here, too: a cached listing would hide their files.
        filesystem, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise InvalidArgumentError(
            f"{uri}: {error}. Install tidemill[s3] for s3://, or the fsspec driver of another object store."
        ) from error
    return filesystem, path


@contextmanager
def translate_store_errors(uri: str) -> Iterator[None]:
    """Translates the errors of object stores: each driver has its own.

    Raises:
        UnavailableError: the store does not respond; a retry may help.
        FailedPreconditionError: the store refuses this process.
    """
    try:
        yield
    except (TidemillError, FileNotFoundError):
        raise
    except PermissionError as error:
        raise FailedPreconditionError(
            f"The artefact store refuses {uri}: {error}. Check the credentials of this process.",
            reason="ARTIFACTS_REFUSED",
            metadata={"uri": uri},
        ) from error
    except Exception as error:
        raise UnavailableError(
            f"The artefact store did not answer for {uri}: {type(error).__name__}: {error}",
            reason="ARTIFACTS_UNAVAILABLE",
            metadata={"uri": uri},
            retry_after_s=2,
        ) from error


class ArtifactStore:
    """Folders under one root URL."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    def uri(self, *parts: str) -> str:
        """URL of a path below the root."""
        return "/".join((self.root, *parts))

    def check_contains(self, uri: str, field: str = "") -> None:
        """Refuses a URL that is not below the root; nothing is opened.

        Args:
            uri: as a caller gave it.
            field: the field of the request that it stood in, for the error.

        Raises:
            InvalidArgumentError: it is not a plain URL: `..`, a query, or nested file systems (`::`).
            PermissionDeniedError: it is outside the store, or leads there through a symbolic link.
        """
        parsed = urlparse(uri)
        path = unquote(parsed.path)
        if "::" in uri or ".." in path.split("/") or "\0" in path or parsed.query or parsed.fragment:
            wrong = f"{uri} is not a plain URL of a folder in the artefact store."
            raise InvalidArgumentError(
                f"{field}: {wrong}" if field else wrong,
                reason="INVALID_ARTIFACT_URI",
                metadata={"uri": uri},
                violations=[FieldViolation(field, wrong)] if field else (),
            )
        root, own = local_path(self.root), local_path(uri)
        if root is None or own is None:
            inside = uri.startswith(f"{self.root}/") and len(uri.rstrip("/")) > len(self.root)
        else:
            inside = parsed.netloc == "" and _is_below(own, root)
        if not inside:
            wrong = f"{uri} is outside the artefact store {self.root}."
            raise PermissionDeniedError(
                f"{field}: {wrong}" if field else wrong,
                reason="OUTSIDE_ARTIFACT_STORE",
                metadata={"uri": uri},
                violations=[FieldViolation(field, wrong)] if field else (),
            )

    def exists(self, uri: str) -> bool:
        """Whether a file or folder exists.

        Raises:
            UnavailableError: the store does not respond.
        """
        own = local_path(uri)
        if own is not None:
            return own.exists()
        filesystem, path = filesystem_of(uri)
        with translate_store_errors(uri):
            return bool(filesystem.exists(path))

    def read_file(self, uri: str) -> bytes | None:
        """Content of a file; None if it does not exist.

        Raises:
            UnavailableError: the store does not respond.
        """
        own = local_path(uri)
        try:
            if own is not None:
                return own.read_bytes()
            filesystem, path = filesystem_of(uri)
            with translate_store_errors(uri):
                content: bytes = filesystem.cat_file(path)
                return content
        except FileNotFoundError:
            return None

    def file_state(self, uri: str) -> tuple[int, str] | None:
        """Size in bytes and sha256 of a file; None if it does not exist.

        Raises:
            UnavailableError: the store does not respond.
        """
        filesystem, path = filesystem_of(uri)
        size, digest = 0, hashlib.sha256()
        with translate_store_errors(uri):
            try:
                with filesystem.open(path, "rb") as stream:
                    while chunk := stream.read(1 << 20):
                        size += len(chunk)
                        digest.update(chunk)
            except FileNotFoundError:
                return None
        return size, digest.hexdigest()

    def discard_folder(self, uri: str) -> None:
        """Removes a folder and its content; does nothing if it does not exist.

        Raises:
            UnavailableError: the store does not respond.
        """
        target = local_path(uri)
        if target is not None:
            # Renamed first: a half removed folder would look like a complete one with other content.
            aside = target.with_name(f".{target.name}.{new_id()}")
            with contextlib.suppress(FileNotFoundError):
                target.rename(aside)
                shutil.rmtree(aside)
            return
        filesystem, path = filesystem_of(uri)
        with translate_store_errors(uri), contextlib.suppress(FileNotFoundError):
            filesystem.rm(path, recursive=True)

    def replace_file(self, source: Path, uri: str) -> None:
        """Puts a file in the place of one in a stored folder; a reader sees the one or the other.

        Raises:
            UnavailableError: the store does not respond; retry.
        """
        target = local_path(uri)
        if target is not None:
            with source.open("rb") as content, replacing(target) as file:
                shutil.copyfileobj(content, file)
            return
        filesystem, path = filesystem_of(uri)
        with translate_store_errors(uri):
            filesystem.put_file(str(source), path)

    def put_folder(self, source: Path, uri: str) -> None:
        """Stores a folder under a URL, completely or not at all; existing content is kept.

        Files whose name starts with `manifest` are uploaded last.

        Raises:
            UnavailableError: the store does not respond; retry.
        """
        target = local_path(uri)
        if target is not None:
            if target.exists():
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{new_id()}")
            try:
                shutil.copytree(source, partial)
                partial.rename(target)
            except OSError:
                # Half a folder on a full disk would keep it full.
                shutil.rmtree(partial, ignore_errors=True)
                if not target.exists():
                    raise
            return
        filesystem, path = filesystem_of(uri)
        files = sorted(p for p in source.rglob("*") if p.is_file())
        with translate_store_errors(uri):
            for item in sorted(files, key=lambda p: p.name.startswith("manifest")):
                filesystem.put_file(str(item), f"{path}/{item.relative_to(source).as_posix()}")

    def fetch_folder(self, uri: str, cache: Path) -> Path:
        """A local folder with the content of a URL: the folder itself if it is local, else a copy in `cache`.

        Raises:
            NotFoundError: the URL does not exist.
            UnavailableError: the store does not respond.
        """
        own = local_path(uri)
        if own is not None:
            if not own.is_dir():
                raise NotFoundError(f"The artefact folder {uri} does not exist.", metadata={"uri": uri})
            return own
        if not self.exists(uri):
            raise NotFoundError(f"The artefact folder {uri} does not exist.", metadata={"uri": uri})
        target = cache / hashlib.sha256(uri.encode()).hexdigest()[:32]
        if target.is_dir():
            return target
        partial = target.with_name(f"{target.name}.{new_id()}")
        filesystem, path = filesystem_of(uri)
        try:
            with translate_store_errors(uri):
                filesystem.get(path, str(partial), recursive=True)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        try:
            partial.rename(target)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not target.is_dir():
                raise FailedPreconditionError(f"Cannot write to the artefact cache {cache}: {error}") from error
        return target
