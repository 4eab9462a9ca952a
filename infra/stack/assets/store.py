"""Puts files into place: written under a partial name, checked by digest, then renamed; verified cheaply on reuse.

Next to each checked file is a marker with the size, modification time and digest it had when it was checked. As
long as these agree the file is used without reading it; otherwise it is digested again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from infra.stack.assets.table import AssetFile
from infra.stack.errors import AssetError
from services.kit.storage.file_lock import locked
from services.kit.whole_files import replace_text

_CHUNK = 1 << 20


class Progress(Protocol):
    """Called with the progress of a named piece of work."""

    def __call__(self, name: str, done: int, total: int) -> None:
        """`done` of `total` bytes have arrived; equal at the end."""
        ...


def silent(name: str, done: int, total: int) -> None:
    """A progress that is not shown."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _marker(path: Path) -> Path:
    return path.with_name(f".{path.name}.checked")


def _print_of(path: Path, sha256: str) -> dict[str, object]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256}


def is_checked(path: Path, size: int, sha256: str) -> bool:
    """Whether the file has this digest; reads it only if the marker does not match."""
    if not path.is_file() or path.stat().st_size != size:
        return False
    try:
        if json.loads(_marker(path).read_text()) == _print_of(path, sha256):
            return True
    except (OSError, ValueError):
        pass
    if sha256_of(path) != sha256:
        return False
    mark(path, sha256)
    return True


def mark(path: Path, sha256: str) -> None:
    """Records that the current content of `path` was checked."""
    replace_text(_marker(path), json.dumps(_print_of(path, sha256)))


def take_in(asset: AssetFile, fetch: Callable[[Path], Path], target: Path) -> Path:
    """Returns `target`, fetching it first if it is missing or changed.

    Args:
        asset: its expected size and digest.
        fetch: downloads into an empty folder and returns the file.
        target: where to put it; its folder is created.

    Raises:
        AssetError: what was fetched differs from the table.
    """
    if is_checked(target, asset.size, asset.sha256):
        return target
    with scratch(target) as folder:
        if is_checked(target, asset.size, asset.sha256):  # by another thread or process, since
            return target
        got = fetch(folder)
        digest = sha256_of(got)
        if digest != asset.sha256:
            raise AssetError(
                f"{asset.filename} came with digest {digest[:16]}… instead of {asset.sha256[:16]}…: the package "
                "source of this machine delivers another file; check its mirror settings (pip, jgo).",
                metadata={"file": asset.filename, "sha256": digest},
            )
        got.replace(target)
        mark(target, asset.sha256)
    return target


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """An empty folder on the file system of `target`, removed at the end.

    Only one thread of one process has it: the next one that makes the same target waits. What a killed process has
    left in it is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f".{target.name}.partial")
    with locked(target.with_name(f".{target.name}.lock")):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def place_folder(target: Path, recipe: str, build: Callable[[Path], None]) -> Path:
    """Returns the folder `target`, built by `build` unless it already was with the same recipe.

    Args:
        target: the folder; it appears whole or not at all.
        recipe: names everything that the content depends on, such as digests of inputs.
        build: fills an empty folder.
    """
    note = target / ".recipe"

    def current() -> bool:
        return note.is_file() and note.read_text(encoding="utf-8") == recipe

    if current():
        return target
    with scratch(target) as folder:
        if current():  # made by another thread or process, since
            return target
        content = folder / "content"
        content.mkdir()
        build(content)
        (content / ".recipe").write_text(recipe, encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        content.replace(target)
    return target


@contextmanager
def one_at_a_time(home: Path) -> Iterator[None]:
    """Keeps two processes of this machine from preparing the same home at once; the second waits."""
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / ".prepare.lock"):
        yield
