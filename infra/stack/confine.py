# ruff: noqa: PTH103, PTH109, PTH110, PTH112, PTH116, PTH120, PTH208 - system calls, on paths as strings
"""Makes a process of root another user's, irreversibly, and keeps the files that it needs within reach.

What it needs may lie below a folder that the user cannot enter, such as a Python that pyenv installed below /root. Then
the process gets a mount namespace of its own: an empty file system covers that folder, and what is needed is bound into
it, read-only unless the user has to write there. After that the process gives up its groups, group and user, and
`no_new_privs` keeps it and every program that it starts from getting them back.

Standard library only. `python confine.py UID GID`, with the folders as JSON on standard input, is a trial: it changes
nothing, and exits with 1 and a message if it is impossible.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
_MS_REMOUNT, _MS_NOATIME, _MS_NODIRATIME, _MS_BIND = 0x20, 0x400, 0x800, 0x1000
_MS_REC, _MS_PRIVATE, _MS_RELATIME = 0x4000, 0x40000, 0x200000
# Of statvfs; the others have the number of their mount flag.
_ST_RELATIME = 0x1000
_KEPT = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_NOATIME | _MS_NODIRATIME


class ImpossibleError(Exception):
    """A process cannot become that user here; the message says what to do."""


@dataclass(frozen=True)
class Needs:
    """Absolute paths that the user's programs use. Missing ones are ignored."""

    read: Sequence[str] = ()
    """Must be readable afterwards."""
    write: Sequence[str] = ()
    """Folders that must be writable afterwards."""
    wish: Sequence[str] = ()
    """Made reachable, but not checked: the program that needs one of them reports if it cannot be read."""
    names: dict[str, str] = field(default_factory=dict)
    """What a path is, for messages."""


def confine(uid: int, gid: int, needs: Needs) -> None:
    """Gives up root. Afterwards this process and all that it starts belong to the user.

    Raises:
        ImpossibleError: it is impossible; this process cannot continue and must end.
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise AssertionError("only the first thread of a process can give up root for all of it")
    before = os.getcwd()
    try:
        os.setgroups([])
    except OSError as error:
        raise ImpossibleError(_no_change(uid, error)) from error
    _reveal(uid, gid, needs)
    try:
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise ImpossibleError(_no_change(uid, error)) from error
    if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise ImpossibleError(f"The kernel refuses no_new_privs ({os.strerror(ctypes.get_errno())}); it is too old.")
    try:
        os.chdir(before)
    except OSError:
        os.chdir("/")
    _check(uid, needs)


def _reveal(uid: int, gid: int, needs: Needs) -> None:
    """Makes what is needed reachable if a folder above it is closed to the user."""
    writable = set(needs.write)
    wanted = [path for path in dict.fromkeys((*needs.read, *needs.write, *needs.wish)) if os.path.exists(path)]
    with _effective(uid, gid):
        covers = {path: cover for path in wanted if (cover := _first_closed(path)) is not None}
    if not covers:
        return
    shallow = sorted(covers, key=lambda path: path.count("/"))
    sources: dict[str, int] = {}
    try:
        if _libc().unshare(_CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
        sources |= {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in shallow}
        for cover in sorted(set(covers.values())):
            _mount("tidemill", cover, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1m")
        for path in shallow:
            _place(path, stat.S_ISDIR(os.fstat(sources[path]).st_mode))
            _mount(f"/proc/self/fd/{sources[path]}", path, None, _MS_BIND | _MS_REC)
            flags = _MS_NOSUID | _MS_NODEV | (0 if path in writable else _MS_RDONLY)
            _mount("none", path, None, _MS_REMOUNT | _MS_BIND | flags | _flags(path))
        for cover in sorted(set(covers.values())):
            _mount("none", cover, None, _MS_REMOUNT | _MS_BIND | _MS_NOSUID | _MS_NODEV | _MS_RDONLY)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise
        raise ImpossibleError(_closed(uid, covers, needs)) from error
    finally:
        for source in sources.values():
            os.close(source)


def _first_closed(path: str) -> str | None:
    """The topmost folder above `path` that the effective user cannot pass through."""
    for folder in reversed(Path(path).parents):
        try:
            os.stat(f"{folder}/.")
        except PermissionError:
            return str(folder)
    return None


@contextlib.contextmanager
def _effective(uid: int, gid: int) -> Iterator[None]:
    try:
        os.setegid(gid)
        os.seteuid(uid)
    except OSError as error:
        raise ImpossibleError(_no_change(uid, error)) from error
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def _place(path: str, is_folder: bool) -> None:
    """Creates a mount point, unless the bind mount of a folder above it already brought it."""
    if os.path.exists(path):
        return
    before = os.umask(0o022)
    try:
        os.makedirs(path if is_folder else os.path.dirname(path), exist_ok=True)
        if not is_folder:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    finally:
        os.umask(before)


def _flags(path: str) -> int:
    """Flags of a mount that a remount must keep."""
    found = os.statvfs(path).f_flag
    return (found & _KEPT) | (_MS_RELATIME if found & _ST_RELATIME else 0)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    arguments = [None if each is None else os.fsencode(each) for each in (source, target, kind)]
    if _libc().mount(*arguments, ctypes.c_ulong(flags), None if options is None else options.encode()) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(uid: int, needs: Needs) -> None:
    """Raises ImpossibleError for the first path that the user still cannot use."""
    for path in needs.read:
        if os.path.lexists(path) and not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
            raise ImpossibleError(
                f"{_named(path, needs)} cannot be read by the user {uid}, as whom the mesh runs when root starts it. "
                f"Give it access (chmod go+rX; for a secret, a copy: install -o {uid} -m 600), or start the mesh as a "
                "user other than root."
            )
    for path in needs.write:
        if os.path.lexists(path) and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise ImpossibleError(
                f"{_named(path, needs)} cannot be written by the user {uid}, as whom the mesh runs when root starts "
                f"it. Run chown -R {uid} on it, or choose another folder."
            )


def _named(path: str, needs: Needs) -> str:
    return f"{needs.names[path]} ({path})" if path in needs.names else path


def _no_change(uid: int, error: OSError) -> str:
    return (
        f"The mesh must not run as root, and root cannot become the user {uid} here ({error.strerror}): start this as "
        "another user (useradd tidemill; a container with --user), or give the container CAP_SETUID and CAP_SETGID."
    )


def _closed(uid: int, covers: dict[str, str], needs: Needs) -> str:
    path, cover = next(iter(covers.items()))
    return (
        f"The mesh must not run as root, and the user {uid}, whom it would run as instead, cannot enter {cover}, "
        f"where {_named(path, needs)} lies; this machine has no mount namespaces to show it to that user alone. Put it "
        f"elsewhere, such as below /opt or /var/lib (TIDEMILL_HOME and TIDEMILL_STATE name its folders), open {cover} "
        "(chmod o+x), or start this as another user than root."
    )


def main(arguments: list[str], folders: Iterable[str]) -> int:
    """The trial; returns the exit status."""
    uid, gid = (int(part) for part in arguments)
    try:
        confine(uid, gid, Needs(**json.loads("".join(folders))))
    except ImpossibleError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdin))
