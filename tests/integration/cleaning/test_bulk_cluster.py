"""`tidemill clean bulk --ray-address` on a cluster of two nodes: the same files, also when a node dies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import ray_cluster
from tests.integration.cleaning import test_bulk_engines
from tests.integration.cleaning.test_bulk_engines import run
from tests.waiting import wait_until

pytestmark = ray_cluster.marks()
recipe, source = test_bulk_engines.recipe, test_bulk_engines.source


@pytest.fixture
def short() -> Iterator[Path]:
    """See `short_folder`."""
    with ray_cluster.short_folder() as folder:
        yield folder


def begin(short: Path, *arguments: object) -> subprocess.Popen[str]:
    """The command beside a cluster."""
    command = (sys.executable, "-m", "gateway.cli.main", "clean", "bulk", *arguments)
    return ray_cluster.beside_cluster(short, *command, "--ray-address", ray_cluster.ADDRESS)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What processes of this machine make."""
    folder = tmp_path_factory.mktemp("processes")
    file = folder / "recipe.yaml"
    file.write_text(test_bulk_engines.RECIPE, encoding="utf-8")
    run(file, source, folder / "out")
    return files(folder / "out")


def test_a_cluster_makes_the_same_files(
    recipe: Path, source: Path, tmp_path: Path, short: Path, expected: dict[str, bytes]
) -> None:
    with begin(short, recipe, source, tmp_path / "out", "--json") as command:
        out, err = command.communicate()
    assert command.returncode == 0, err
    assert json.loads(out)["reused_parts"] == 0
    assert files(tmp_path / "out") == expected


def test_a_node_that_dies_loses_nothing(
    recipe: Path, source: Path, tmp_path: Path, short: Path, expected: dict[str, bytes]
) -> None:
    with begin(short, recipe, source, tmp_path / "out", "--json") as command:

        def raylet() -> psutil.Process | None:
            """Of the second node, once a part is finished."""
            if not list(tmp_path.glob(".out.partial/reports/*.json")):
                return None
            children = psutil.Process(command.pid).children(recursive=True)
            return next(
                (each for each in children if f"--node_ip_address={ray_cluster.OTHER_NODE}" in each.cmdline()), None
            )

        wait_until(raylet, "a finished part", 300).kill()
        out, err = command.communicate()
    assert command.returncode == 0, err
    assert json.loads(out)["reused_parts"] == 0
    assert files(tmp_path / "out") == expected
