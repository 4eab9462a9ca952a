"""For tests: the real parts, started once and stopped at the end.

Use: `with running_parts({"kafka", "triton"}, folder) as stack: KafkaProducer(bootstrap_servers=stack.kafka_bootstrap)`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.stack import client
from infra.stack.assets import prepare
from infra.stack.layout import Home, Layout
from infra.stack.state import StackState
from infra.stack.topology import PARTS
from services.kit.config import home_dir

REUSE = "TIDEMILL_TEST_STATE"
"""Environment variable: state folder of a running stack to use instead of starting one."""


@contextmanager
def running_parts(parts: Iterable[str], state_dir: Path) -> Iterator[StackState]:
    """Runs some of the stack's children for the length of the block.

    Args:
        parts: names out of `infra.stack.topology.NAMES`; files that they need are fetched into TIDEMILL_HOME.
        state_dir: a folder of the test's own; short, for sockets live below it.

    Raises:
        StackError: they cannot be started.
    """
    wanted = set(parts)
    reused = os.environ.get(REUSE)
    if reused:
        stack = client.status(Path(reused), home_dir())
        if wanted <= {name for name, child in stack.children.items() if child.healthy}:
            yield stack
            return
    prepare(Home(home_dir()), wanted & set(PARTS) - {"triton"})
    try:
        yield client.up(state_dir, home_dir(), wanted)
    finally:
        client.down(state_dir, home_dir())
        _remove_far_folder(state_dir)


def _remove_far_folder(state_dir: Path) -> None:
    """Started by root, Elasticsearch may have worked outside the test's folder, which nobody would clear up."""
    folder = Layout.of(home_dir(), state_dir).state.elasticsearch
    if folder.is_symlink():
        shutil.rmtree(folder.resolve(), ignore_errors=True)
        folder.unlink()
