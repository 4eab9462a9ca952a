"""For tests: the real parts, started once and stopped at the end.

Use: `with running_parts({"kafka", "triton"}, folder) as stack: KafkaProducer(bootstrap_servers=stack.kafka_bootstrap)`.

All stacks that one test process starts have the same password, so that its Kafka clients, and the services that it
starts, are the mesh's own user at whichever broker they speak to.
"""

from __future__ import annotations

import atexit
import functools
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.stack import client, kafka_access
from infra.stack.assets import prepare
from infra.stack.elasticsearch import CALLER
from infra.stack.layout import Home, Layout
from infra.stack.state import ChildState, StackState
from infra.stack.topology import PARTS
from services.kit.bus.brokers import Brokers, ProducerClient
from services.kit.config import home_dir

REUSE = "TIDEMILL_TEST_STATE"
"""Environment variable: state folder of a running stack to use instead of starting one."""


@contextmanager
def running_parts(parts: Iterable[str], state_dir: Path, *, own: bool = False) -> Iterator[StackState]:
    """Runs some of the stack's children within the block.

    Args:
        parts: names out of `infra.stack.topology.NAMES`; files that they need are fetched into TIDEMILL_HOME.
        state_dir: a folder of the test's own; short, for sockets live below it.
        own: whether they are started even if `REUSE` names a running stack: for a test that kills or changes them.

    Raises:
        StackError: they cannot be started.
    """
    wanted = set(parts)
    reused = os.environ.get(REUSE)
    if reused and not own:
        stack = client.status(Path(reused), home_dir())
        if wanted <= {name for name, child in stack.children.items() if child.healthy}:
            _authenticate(kafka_access.password_file(Layout.of(home_dir(), Path(reused)).state, kafka_access.MESH))
            yield stack
            return
    prepare(Home(home_dir()), wanted & set(PARTS) - {"triton"})
    _authenticate(_test_password())
    state = Layout.of(home_dir(), state_dir).state
    for secret in (kafka_access.password_file(state, kafka_access.MESH), state.elasticsearch_password):
        secret.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(_test_password(), secret)
        secret.chmod(0o600)
    try:
        yield client.up(state_dir, home_dir(), wanted)
    finally:
        client.down(state_dir, home_dir())


@functools.cache
def _test_password() -> Path:
    """A file with the password of this test process."""
    folder = Path(tempfile.mkdtemp(prefix="tidemill-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = folder / "mesh.password"
    file.write_text(secrets.token_hex(32))
    return file


def running_child(name: str, state_dir: Path) -> ChildState:
    """A child of `running_parts(…, state_dir)` as it is now."""
    return client.status(Path(os.environ.get(REUSE) or state_dir), home_dir()).children[name]


def brokers(bootstrap: str, producer: ProducerClient = ProducerClient.LIBRDKAFKA) -> Brokers:
    """The brokers of `running_parts`, for the mesh's user."""
    password = Path(os.environ["TIDEMILL_KAFKA_PASSWORD_FILE"])
    return Brokers(bootstrap, kafka_access.MESH, password, client=producer)


def _authenticate(password: Path) -> None:
    """Lets kafka-python's clients in this process, and services that inherit its environment, be the mesh's user."""
    from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

    os.environ |= {"TIDEMILL_KAFKA_USER": kafka_access.MESH, "TIDEMILL_KAFKA_PASSWORD_FILE": str(password)}
    os.environ |= {"TIDEMILL_ELASTICSEARCH_USER": CALLER, "TIDEMILL_ELASTICSEARCH_PASSWORD_FILE": str(password)}
    options = Brokers("", kafka_access.MESH, password).options()
    del options["bootstrap_servers"]
    for kind in (KafkaAdminClient, KafkaConsumer, KafkaProducer):
        kind.DEFAULT_CONFIG.update(options)
