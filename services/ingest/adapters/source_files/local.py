"""Files of this machine, only below the allowed roots, safe against links and changes between check and open.

A file is first opened without access to its content (O_PATH). Then the real location and type of that very file are
checked, and it is opened for reading through its descriptor. So no link can be swapped in between, and devices and
pipes are never opened.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fsspec.utils import glob_translate

from services.ingest.adapters.source_files.port import (
    CHUNK_BYTES,
    FoundFile,
    ReadLimits,
    forbidden,
    matching,
    no_folder,
    not_a_file,
    not_a_folder,
    wrong,
)
from services.ingest.adapters.source_files.roots import SourceRoots
from services.ingest.app.interrupt import Interrupt
from services.ingest.domain.source_import import SourceSpec
from services.ingest.engine.file_format import BadContentError

_GLOB = re.compile(r"[*?\[]")


class LocalFiles:
    """Implements `port.FolderPlace` for this machine's files."""

    def __init__(
        self, spec: SourceSpec, path: str, roots: SourceRoots, limits: ReadLimits, interrupt: Interrupt
    ) -> None:
        self._spec = spec
        self._root = os.path.normpath(path)
        self._roots = roots
        self._limits = limits
        self._interrupt = interrupt

    def find(self, pattern: str) -> Mapping[str, FoundFile]:
        """See the port. Links to folders are followed, each folder once."""
        self._check(self._root)
        root = Path(self._root)
        if not root.exists():
            raise no_folder(self._spec, self._remedy("create it or correct the path"))
        if root.is_file():
            raise not_a_folder(self._spec)
        files = matching(self._spec, self._walk(self._root, None), pattern, self.below)
        for path in files:
            self._check(path)
        return files

    def match(self) -> Mapping[str, FoundFile]:
        """See the port."""
        uri, path = self._spec.kind.uri, self._root
        if _GLOB.search(path) and not (self._allowed(path) and Path(path).exists()):
            return self._match_glob()
        self._check(path)
        if not Path(path).exists():
            remedy = self._remedy("give a file or a glob such as /data/*.jsonl")
            raise wrong(self._spec, f"{uri} does not exist; {remedy}.")
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise not_a_file(self._spec)
        if not stat.S_ISREG(status.st_mode):
            raise wrong(self._spec, f"{uri} is not a regular file; pipes and devices cannot be imported.", "NOT_A_FILE")
        return {path: FoundFile(status.st_size)}

    def _match_glob(self) -> Mapping[str, FoundFile]:
        parts = PurePosixPath(self._root).parts
        first = next(number for number, part in enumerate(parts) if _GLOB.search(part))
        base = str(PurePosixPath(*parts[:first]))
        self._check(base)
        depth = None if "**" in self._root else len(parts) - first
        matches = re.compile(glob_translate(self._root)).match
        files = {path: info for path, info in self._walk(base, depth).items() if matches(path)}
        if not files:
            uri = self._spec.kind.uri
            raise wrong(self._spec, f"No file matches {uri}; add one or correct the glob.")
        for path in files:
            self._check(path)
        return files

    def below(self, path: str) -> str:
        """See the port."""
        prefix = self._root.rstrip("/") + "/"
        return path[len(prefix) :] if path.startswith(prefix) else PurePosixPath(path).name

    def location(self, path: str) -> str:
        """See the port."""
        return f"file://{path}"

    @contextmanager
    def open(self, path: str) -> Iterator[Iterator[bytes]]:
        """See the port."""
        descriptor = self._descriptor(path)
        with os.fdopen(descriptor, "rb", buffering=0):
            yield self._chunks(descriptor)

    def _chunks(self, descriptor: int) -> Iterator[bytes]:
        before = os.fstat(descriptor)
        while chunk := os.read(descriptor, CHUNK_BYTES):
            self._interrupt.check()
            yield chunk
        after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise BadContentError(
                "SOURCE_CHANGED", "the file changed while it was read; import it when nothing writes to it"
            )

    def heads(self, paths: Sequence[str], size: int) -> Sequence[bytes | OSError]:
        """See the port."""
        return [self._head(path, size) for path in paths]

    def _head(self, path: str, size: int) -> bytes | OSError:
        self._interrupt.check()
        try:
            descriptor = self._descriptor(path)
        except OSError as error:
            return error
        with os.fdopen(descriptor, "rb") as stream:
            return stream.read(size)

    def close(self) -> None:
        """See the port."""

    def _descriptor(self, path: str) -> int:
        """The file, opened for reading after all checks were made on the file itself."""
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            link = f"/proc/self/fd/{handle}"
            status, place = os.fstat(handle), str(Path(link).readlink())
            if status.st_nlink == 0:
                raise FileNotFoundError(2, "It was deleted", path)
            if not self._roots.allows_folder(place):
                raise self._outside(path)
            if not stat.S_ISREG(status.st_mode):
                raise wrong(
                    self._spec, f"{path} is not a regular file; pipes and devices cannot be imported.", "NOT_A_FILE"
                )
            return os.open(link, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        finally:
            os.close(handle)

    def _walk(self, root: str, depth: int | None) -> dict[str, FoundFile]:
        """Files below a folder, up to `depth` folders deep.

        Raises:
            OSError: a folder cannot be listed; otherwise its files would be missing silently.
        """

        def fail(error: OSError) -> None:
            raise error

        found: dict[str, FoundFile] = {}
        entered: set[str] = set()
        start = len(PurePosixPath(root).parts)
        for folder, folders, names in os.walk(root, followlinks=True, onerror=fail):
            self._interrupt.check()
            real = os.path.realpath(folder)
            if real in entered:
                folders.clear()
                continue
            self._check(folder)
            entered.add(real)
            if depth is not None and len(PurePosixPath(folder).parts) - start >= depth - 1:
                folders.clear()
            # Of two paths to the same folder, which one counts must not depend on the file system's order.
            folders.sort()
            for name in names:
                path = str(Path(folder, name))
                try:
                    status = Path(path).stat()
                except OSError:
                    # A dangling link, for example: reading it reports the error.
                    found[path] = FoundFile(0)
                    continue
                if stat.S_ISREG(status.st_mode):
                    found[path] = FoundFile(status.st_size)
            if len(found) > self._limits.files:
                message = f"{self._spec.kind.uri} has more than {self._limits.files} files; import it in parts."
                raise wrong(self._spec, message, "SOURCE_TOO_LARGE")
        return found

    def _remedy(self, usual: str) -> str:
        if self._roots.is_example(self._root):
            return "`tidemill run FILE` fetches the example data that the pipeline file names"
        return usual

    def _allowed(self, path: str) -> bool:
        return self._roots.allows_folder(os.path.realpath(path))

    def _check(self, path: str) -> None:
        if not self._allowed(path):
            raise self._outside(path)

    def _outside(self, path: str) -> Exception:
        return forbidden(
            self._spec,
            f"{path} is outside the folders that imports may read. Move it next to the pipeline file, run "
            "`tidemill run --allow FOLDER`, or ask the operator to add its folder to TIDEMILL_SOURCE_ROOTS.",
        )
