"""The folders and buckets that imports may read, as allowed by this machine's user: a file in the mesh's state.

`tidemill run` adds to it, the ingest service reads it. No RPC changes it: a caller of the mesh must not be able to
extend what the mesh reads.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from services.kit.errors import FailedPreconditionError
from services.kit.whole_files import OWNER_ONLY, replacing

FILE_NAME = "source-roots.json"


def read_roots(file: Path) -> list[str]:
    """The roots in the file; empty if there is no file.

    Raises:
        FailedPreconditionError: other users could have written it, or it is damaged.
    """
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise FailedPreconditionError(
                    f"{file} belongs to another user or is writable by others. Set its owner, then chmod 600 it.",
                    reason="SOURCE_ROOTS_UNSAFE",
                )
            roots = json.load(stream)["roots"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise FailedPreconditionError(
            f"{file} is damaged ({error}); delete it and run `tidemill run FILE` again.", reason="SOURCE_ROOTS_DAMAGED"
        ) from error
    return [str(root) for root in roots]


def add_roots(file: Path, roots: Sequence[str]) -> None:
    """Adds roots permanently; only the owner can access the file.

    Raises:
        FailedPreconditionError: see `read_roots`.
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(file.parent / f".{FILE_NAME}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(lock, "a"):
        _give_to_owner(lock, file.parent)
        fcntl.flock(lock, fcntl.LOCK_EX)
        present = read_roots(file)
        wanted = [*present, *(root for root in dict.fromkeys(roots) if root not in present)]
        if wanted == present:
            return
        with replacing(file, OWNER_ONLY) as stream:
            stream.write(json.dumps({"roots": wanted}, indent=1).encode())
            _give_to_owner(stream.fileno(), file.parent)


def _give_to_owner(descriptor: int, folder: Path) -> None:
    """Started by root, the mesh works as the owner of its state."""
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
