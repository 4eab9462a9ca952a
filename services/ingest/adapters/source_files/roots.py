"""The folders and URLs below which imports may read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from services.ingest.domain.source_uri import parse_uri
from services.kit.source_roots import read_roots

# Files there are not data, wherever a root is: their content comes from the kernel, about this process, too.
_NEVER = ("/proc", "/sys")


class SourceRoots:
    """The roots in the settings, and those that this machine's user added since. Thread-safe."""

    def __init__(self, fixed: Sequence[str], file: Path | None = None, examples: str = "") -> None:
        """Reads no file yet.

        Args:
            fixed: absolute paths or URLs.
            file: the file that `services.kit.source_roots` writes.
            examples: folder of the mesh's example data, also a root; empty for none.
        """
        self._fixed = [*fixed, *([examples] if examples else [])]
        self._examples = os.path.realpath(examples) if examples else ""
        self._file = file

    def allows_folder(self, path: str) -> bool:
        """Whether a real path, without links, is in one of the folders."""
        if any(_within(path, place) for place in _NEVER):
            return False
        folders = [parse_uri(root).path for root in self._all() if _scheme(root) == "file"]
        return any(_within(path, os.path.realpath(folder)) for folder in folders)

    def is_example(self, path: str) -> bool:
        """Whether a path belongs to the example data, which are fetched on first use."""
        return bool(self._examples) and _within(os.path.realpath(path), self._examples)

    def allows_s3(self, path: str) -> bool:
        """Whether `bucket/key` is below one of the URLs: buckets are read with the service's own credentials."""
        roots = [root for root in self._all() if _scheme(root) == "s3"]
        return any(_within(path, root[len("s3://") :].rstrip("/")) for root in roots)

    def allows_http(self, url: str) -> bool:
        """Whether a URL is below one of the URLs; if there are none, only the network rules apply."""
        roots = [root for root in self._all() if _scheme(root) in ("http", "https")]
        return not roots or any(_within(url.partition("?")[0], root.rstrip("/")) for root in roots)

    def _all(self) -> list[str]:
        return [*self._fixed, *(read_roots(self._file) if self._file is not None else ())]


def _scheme(root: str) -> str:
    return "file" if root.startswith("/") else root.partition(":")[0].lower()


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
