"""The whole mesh on its real parts, started once, and the tools of a new user: command line, files, clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
import yaml

from infra.stack import client
from infra.stack.assets import prepare
from infra.stack.layout import Home
from infra.stack.state import StackState
from infra.stack.testing import running_parts
from infra.stack.topology import NAMES
from services.kit.config import home_dir
from tests.faults.strangers import open_folder
from tests.plugins import PLUGIN, install

ROOT = Path(__file__).parents[2]
EXAMPLES = ("smollm2", "bge-small-zh", "bbc", "reviews")

T = TypeVar("T")


@dataclass
class Mesh:
    """The running mesh."""

    stack: StackState
    scratch: Path

    @property
    def key(self) -> str:
        """The API key that the gateway created at its first start."""
        return (self.stack.state / "api-key").read_text().strip()

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Metadata of a gRPC call."""
        return (("authorization", f"Bearer {self.key}"),)

    def channel(self) -> grpc.Channel:
        """A channel to the gateway."""
        return grpc.insecure_channel(self.stack.address("gateway"))

    def tidemill(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command as a user does."""
        environment = {
            **os.environ,
            "TIDEMILL_HOME": str(self.stack.home),
            "TIDEMILL_STATE": str(self.stack.state),
            "COLUMNS": "120",
            "NO_COLOR": "1",
        }
        result = subprocess.run(
            [sys.executable, "-m", "gateway.cli.main", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        if check:
            assert result.returncode == 0, f"{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
        return result

    def json(self, *arguments: str) -> Any:
        """What a command prints with --json."""
        return json.loads(self.tidemill(*arguments, "--json").stdout)

    def pipeline(self, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
        """A pipeline of the repository, changed by a test, as a file."""
        value = yaml.safe_load((ROOT / "pipelines" / name).read_text(encoding="utf-8"))
        change(value)
        path = self.scratch / f"{value['name']}.yaml"
        path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
        return path

    def now(self) -> StackState:
        """The parts as they are now."""
        return client.status(self.stack.state, self.stack.home)

    def kill(self, name: str) -> int:
        """kill -9 of one of the mesh's processes.

        Returns:
            The process that was killed.
        """
        pid = self.now().children[name].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return pid


@pytest.fixture(scope="package")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Every part and every service."""
    prepare(Home(home_dir()), EXAMPLES)
    # If root starts the mesh, it runs as another user, who cannot enter pytest's folder.
    with open_folder() as pipelines, open_folder() as plugins, pytest.MonkeyPatch.context() as patch:
        install(plugins, PLUGIN)
        patch.setenv("TIDEMILL_PLUGINS", str(plugins))
        # Sites and APIs of tests are on this machine, from which sources are not fetched otherwise.
        patch.setenv("TIDEMILL_SOURCE_HOSTS", "127.0.0.1:*")
        with running_parts(NAMES, tmp_path_factory.mktemp("mesh")) as stack:
            yield Mesh(stack, pipelines)
