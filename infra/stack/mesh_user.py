"""Chooses the user that a mesh runs as when root starts it, gives it the mesh's folders, and becomes that user.

Nothing of a mesh runs as root, so a vulnerable service is not root. A command line of root also becomes that user
before it touches the state folder: services write there, and root must not follow a link or trust a file that a service
put there. Only downloading and installing are done as root.

The user is the owner of the state folder. A folder that is root's, or that does not exist yet, is given to
TIDEMILL_USER, else to the account `tidemill`, else to a user id that no account has.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from infra.stack import confine
from infra.stack.child import User
from infra.stack.errors import StackError
from infra.stack.layout import Layout, import_roots
from infra.stack.libpython import find_libpython
from infra.stack.state import read_state
from infra.stack.triton import shared_memory_prefix
from services.kit.whole_files import replace_text

USER = "TIDEMILL_USER"
"""Environment variable: the user (name, uid or uid:gid) of a mesh that root starts, if root owns its state so far."""

_ACCOUNT = "tidemill"
# Outside the ranges that systemd and distributions give out (systemd.io/UIDS-GIDS).
_FREE_IDS = range(65520, 65532)
# Variables that name root's own folders and sockets.
_ROOTS_OWN = ("XDG_", "SUDO_", "SSH_", "DBUS_", "MAIL", "TMPDIR")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def is_root() -> bool:
    """Whether this process runs as root."""
    return os.geteuid() == 0


def become_owner(layout: Layout) -> None:
    """Becomes the owner of the state folder, if this process is root and the owner is not.

    Before the first start there is no such user, and no service has written anything.

    Raises:
        StackError: it is impossible.
    """
    if is_root() and (owner := _owner(layout.state.root)) is not None:
        _become(layout, owner, _needs(layout, owner, starts=False))


def become_mesh_user(layout: Layout) -> None:
    """Gives the mesh's folders to the user that the mesh runs as, and becomes that user; does nothing unless root.

    Raises:
        StackError: it is impossible, or a mesh that root owns is running.
    """
    if not is_root():
        return
    user = choose(layout)
    _give_folders(layout, user)
    _become(layout, user, _needs(layout, user))


def show(layout: Layout, folders: Iterable[Path]) -> None:
    """Notes folders that the mesh shall reach from its next start on, even below a folder that its user cannot enter.

    Does nothing unless this process is root. The file of the notes is root's: a service must not be able to add to it.
    The modes of the folders themselves still apply.

    Raises:
        StackError: TIDEMILL_HOME is another user's.
    """
    if not is_root():
        return
    refuse_home_of_others(layout)
    layout.home.root.mkdir(parents=True, exist_ok=True)
    every = {state: noted for state, noted in _notes(layout).items() if Path(state).exists()}
    of_mesh = every.setdefault(str(layout.state.root), [])
    if new := [str(folder) for folder in folders if str(folder) not in of_mesh]:
        of_mesh += new
        replace_text(_note_file(layout), json.dumps(every, indent=1))


def refuse_home_of_others(layout: Layout) -> None:
    """Refuses to download as root into a folder of another user, who could put a link there.

    Raises:
        StackError: TIDEMILL_HOME is another user's.
    """
    owner = _owner(layout.home.root)
    if is_root() and owner is not None:
        raise StackError(
            f"{layout.home.root} (TIDEMILL_HOME) belongs to the user {owner.uid}. Run this command as that user, or "
            "set TIDEMILL_HOME to a folder that root owns."
        )


def choose(layout: Layout) -> User:
    """The user for a mesh that root starts.

    Raises:
        StackError: TIDEMILL_USER is wrong, or no id is free.
    """
    if text := os.environ.get(USER):
        return _named(text)
    if (owner := _owner(layout.state.root)) is not None:
        return owner
    with contextlib.suppress(KeyError):
        return _not_root(pwd.getpwnam(_ACCOUNT))
    # All meshes of root for which no user is named get the same id: they share ports and converted models.
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    for number in _FREE_IDS:
        if number not in taken:
            return User(number, number)
    raise StackError(f"No user id from {_FREE_IDS[0]} to {_FREE_IDS[-1]} is free: set {USER} to a user for the mesh.")


def obstacle(layout: Layout) -> str | None:
    """Why this user cannot start a mesh, as a sentence; None if it can. Changes nothing."""
    if not is_root():
        return None
    try:
        refuse_home_of_others(layout)
        user = choose(layout)
    except StackError as error:
        return error.message
    needs = _needs(layout, user)
    # The folders to write are given to the user only at the start, so the trial does not check them.
    trial = {"read": needs.read, "wish": [*needs.write, *needs.wish], "names": needs.names}
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(Path(confine.__file__)), str(user.uid), str(user.gid)],
        input=json.dumps(trial),
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else done.stderr.strip()


def _become(layout: Layout, user: User, needs: confine.Needs) -> None:
    try:
        confine.confine(user.uid, user.gid, needs)
    except confine.ImpossibleError as error:
        raise StackError(str(error), reason="ROOT") from error
    for name in [name for name in os.environ if name.startswith(_ROOTS_OWN)]:
        del os.environ[name]
    home = layout.state.root / "home"
    with contextlib.suppress(OSError):
        home.mkdir(mode=0o700, exist_ok=True)
    os.environ |= {
        "HOME": str(home),
        "USER": _ACCOUNT,
        "LOGNAME": _ACCOUNT,
        "TIDEMILL_HOME": str(layout.home.root),
        "TIDEMILL_STATE": str(layout.state.root),
    }
    if not (
        sys.dont_write_bytecode or os.access(sys.prefix, os.W_OK)
    ):  # otherwise each start would compile every module again
        os.environ["PYTHONPYCACHEPREFIX"] = str(layout.home.bytecode)


def _needs(layout: Layout, user: User, *, starts: bool = True) -> confine.Needs:
    """Paths that the mesh uses or, if `starts` is false, that a command uses which starts nothing."""
    library = find_libpython()
    programs = {
        "Tidemill's code": import_roots(),
        "Python's environment": [Path(sys.prefix)],
        "Python": [Path(sys.base_prefix), Path(sys.base_exec_prefix), *([library.parent] if library else [])],
        "TIDEMILL_HOME": [layout.home.root],
    }
    own = {"TIDEMILL_STATE": [layout.state.root], "a folder of TIDEMILL_HOME": layout.home.written(user.uid)}
    named_paths = dict(_environment())
    shown = _notes(layout).get(str(layout.state.root), [])
    names = {
        path: what for what, paths in [*programs.items(), *own.items()] for each in paths for path in _spellings(each)
    }
    names |= {path: name for name, paths in named_paths.items() for path in paths}
    variables = [path for paths in named_paths.values() for each in paths for path in _spellings(each)]
    return confine.Needs(
        read=[path for paths in programs.values() for each in paths for path in _spellings(each)]
        + (variables if starts else []),
        write=[path for paths in own.values() for each in paths for path in _spellings(each)],
        wish=[path for each in shown for path in _spellings(each)] + ([] if starts else variables),
        names=names,
    )


def _spellings(path: Path | str) -> list[str]:
    """A path as written, and with its links resolved: programs use both."""
    return list(dict.fromkeys((str(path), str(Path(path).resolve()))))


def _environment() -> Iterator[tuple[str, list[str]]]:
    """Environment variables that name existing files or folders, with their paths."""
    for name, value in os.environ.items():
        if not (name.startswith("TIDEMILL_") or name in _CERTIFICATES):
            continue
        parts = [part.strip().removeprefix("file://") for part in value.split(",")]
        found = [part for part in parts if part.startswith("/") and os.path.exists(part)]  # noqa: PTH110 - may be no path
        if found and name not in ("TIDEMILL_STATE", "TIDEMILL_HOME"):
            yield name, found


def _note_file(layout: Layout) -> Path:
    return layout.home.root / "shown.json"


def _notes(layout: Layout) -> dict[str, list[str]]:
    """The folders that `show` noted, by state folder."""
    file = _note_file(layout)
    try:
        if file.lstat().st_uid != 0 or _owner(file.parent) is not None:
            return {}
        return {str(state): [str(each) for each in folders] for state, folders in json.loads(file.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise StackError(f"{file} is damaged ({error}): remove it, and run `tidemill run FILE` again.") from error


def _owner(folder: Path) -> User | None:
    """The owner of a folder; None if that is root, or if the folder does not exist."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return User(found.st_uid, found.st_gid) if found.st_uid else None


def _named(text: str) -> User:
    name, _, group = text.partition(":")
    try:
        if not name.isdecimal():
            return _not_root(pwd.getpwnam(name))
        uid = int(name)
        if not group:
            with contextlib.suppress(KeyError):
                return _not_root(pwd.getpwuid(uid))
        gid = int(group or name)
    except (KeyError, ValueError) as error:
        raise StackError(f"{USER}={text}: there is no such user; give a name, a uid, or uid:gid.") from error
    if not (0 < uid < 2**32 - 1 and 0 < gid < 2**32 - 1):
        raise StackError(f"{USER}={text}: must be a user and a group other than root's.")
    return User(uid, gid)


def _not_root(entry: pwd.struct_passwd) -> User:
    if not (entry.pw_uid and entry.pw_gid):
        raise StackError(f"The account {entry.pw_name} is root, or in its group: set {USER} to another user.")
    return User(entry.pw_uid, entry.pw_gid)


def _give_folders(layout: Layout, user: User) -> None:
    """Gives the user the state folder and what the mesh writes outside it; repairs what root wrote there since."""
    state = layout.state.root
    if read_state(layout).running:
        if _owner(state) is None:
            raise StackError(f"A mesh that root started runs on {state}: run `tidemill down` first.")
        return
    _refuse_foreign(state, user)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    folders = [state]
    _open_folder(layout.home.root)
    if _owner(layout.home.root) is None:  # another user's is left as it is
        _refuse_foreign(layout.home.root, user)
        _open_folder(layout.home.own(user.uid))
        folders += layout.home.written(user.uid)
    for folder in folders:
        folder.mkdir(exist_ok=True)
    if _owner(state) is None:
        _bring_back(layout)
        for path in Path("/dev/shm").glob(f"{shared_memory_prefix(layout)}*"):  # noqa: S108 - the system's own folder
            path.unlink(missing_ok=True)
    for folder in folders:
        give(folder.resolve(), user)


def _open_folder(folder: Path) -> None:
    """Creates a folder that others may pass through, whatever root's umask is; an existing one stays as it is."""
    if not folder.exists():
        folder.mkdir(parents=True)
        folder.chmod(0o755)


def _refuse_foreign(folder: Path, user: User) -> None:
    """Refuses a folder that a third user could replace, and one that contains the system."""
    for above in {*folder.parents, *folder.resolve().parents}:
        owner = _owner(above)
        if owner is not None and owner.uid != user.uid:
            raise StackError(
                f"{folder} lies below {above}, which belongs to the user {owner.uid}: start the mesh as that user, or "
                "set TIDEMILL_HOME and TIDEMILL_STATE to folders of root's."
            )
    held = (Path("/etc"), Path("/usr"), Path(sys.prefix), Path(sys.base_prefix), Path.home(), *import_roots())
    if any(place.resolve().is_relative_to(folder.resolve()) for place in held):
        raise StackError(
            f"{folder} contains more than a mesh: set TIDEMILL_HOME and TIDEMILL_STATE to folders of their own."
        )


def _bring_back(layout: Layout) -> None:
    """Moves Elasticsearch's data into the state folder; an earlier release kept it outside if root owned the state."""
    link = layout.state.elasticsearch
    if not link.is_symlink():
        return
    outside = link.resolve()
    link.unlink()
    link.mkdir(mode=0o700)
    if (outside / "data").is_dir():
        shutil.move(outside / "data", link / "data")
    shutil.rmtree(outside, ignore_errors=True)


def give(folder: Path, user: User) -> None:
    """Gives a folder and all below it to the user.

    The new or the previous owner may change files there at the same time. So no link is followed, and each file is
    changed through the descriptor with which it was inspected. A file with several hard links may be someone else's; it
    is given only if no one but root could have created the other links.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _give(descriptor, user, trusted=os.fstat(descriptor).st_uid == 0)
    finally:
        os.close(descriptor)


def _give(folder: int, user: User, *, trusted: bool) -> None:
    _give_one(folder, user)
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _is_plain(entry.stat)]
    for name in names:
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError:  # it was removed or replaced in the meantime
            continue
        try:
            found = os.fstat(descriptor)
            if stat.S_ISDIR(found.st_mode):
                _give(descriptor, user, trusted=trusted and found.st_uid == 0)
            elif stat.S_ISREG(found.st_mode) and (trusted or found.st_nlink == 1):
                _give_one(descriptor, user)
        finally:
            os.close(descriptor)


def _give_one(descriptor: int, user: User) -> None:
    found = os.fstat(descriptor)
    if (found.st_uid, found.st_gid) != (user.uid, user.gid):
        os.fchown(descriptor, user.uid, user.gid)


def _is_plain(look: Callable[..., os.stat_result]) -> bool:
    """Whether it is a folder or a regular file: opening anything else, such as a device, can have effects."""
    try:
        mode = look(follow_symlinks=False).st_mode
    except OSError:
        return False
    return stat.S_ISDIR(mode) or stat.S_ISREG(mode)
