"""A Ray cluster of two nodes, of one CPU each, in a network of its own: whoever reaches Ray can run code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.stack.layout import python_path

ADDRESS = "127.0.0.1:6379"
"""Of the head, which is the first node."""
OTHER_NODE = "127.0.0.2"
_UNSHARE = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
_PROGRAM = Path(__file__).with_name("ray_cluster.sh")


def marks() -> list[pytest.MarkDecorator]:
    """Of tests that use it."""
    return [
        pytest.mark.slow,
        pytest.mark.timeout(900),
        pytest.mark.skipif(
            subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode != 0,
            reason="this machine lets no one make namespaces, without which strangers would reach Ray",
        ),
    ]


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose name leaves room for those of Ray's sockets."""
    folder = tempfile.mkdtemp(prefix="ray")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def beside_cluster(folder: Path, *command: object) -> subprocess.Popen[str]:
    """A command beside the cluster, in namespaces that end with it; `folder` is a short one."""
    return subprocess.Popen(
        [*_UNSHARE, "sh", str(_PROGRAM), sys.executable, str(folder), *map(str, command)],
        env={**os.environ, "PYTHONPATH": python_path()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
