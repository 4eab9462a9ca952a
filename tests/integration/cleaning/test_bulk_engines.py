"""Bulk runs as commands: what they refuse, and what a kill leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.stack.layout import python_path
from tests.integration.cleaning.test_bbc import articles
from tests.waiting import wait_until

RECIPE = """name: bulk
sources:
  - source: bbc
    pushed: {}
dataset:
  name: datasets/bbc
  operators:
    - fix_unicode
    - length_filter: {min_chars: 1000}
    - exact_dedup
"""
PARTS = 8


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parquet")
    rows = [{"text": record.text, "topic": record.attributes["topic"]} for record in articles()]
    for number in range(PARTS):
        pq.write_table(pa.Table.from_pylist(rows[number::PARTS]), folder / f"{number}.parquet")
    return folder


def begin(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The command, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.main", "clean", "bulk", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": python_path(), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*arguments: object, **environment: str) -> str:
    """Its standard output."""
    with begin(*arguments, **environment) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def refused(*arguments: object) -> str:
    """Its standard error."""
    with begin(*arguments) as process:
        _, err = process.communicate()
    assert process.returncode not in (0, None)
    return err


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_a_wrong_recipe_is_named_with_its_line(recipe: Path, source: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.replace("length_filter", "lenght_filter"), encoding="utf-8")
    err = refused(recipe, source, tmp_path / "out")
    assert f"{recipe}:9:" in err
    assert "'lenght_filter' is not a known operator; did you mean 'length_filter'" in err
    assert not list(tmp_path.glob("*out*"))


def test_a_killed_run_leaves_no_process_and_the_same_command_continues(
    recipe: Path, source: Path, tmp_path: Path
) -> None:
    once = tmp_path / "once"
    run(recipe, source, once, "--processes", 2)
    output = tmp_path / "out"
    with begin(recipe, source, output, "--processes", 1) as command:
        wait_until(lambda: list(tmp_path.glob(".out.partial/reports/*.json")), "a part is finished")
        left = descendants(command)
        (own,) = psutil.Process(command.pid).children()
        own.kill()
        command.communicate()
    assert command.returncode != 0
    psutil.wait_procs(left, timeout=60)
    assert not [process for process in left if process.is_running()]
    finished = len(list(tmp_path.glob(".out.partial/reports/*.json")))
    summary = json.loads(run(recipe, source, output, "--processes", 1, "--json"))
    assert summary["reused_parts"] == finished > 0
    assert (output / "manifest.json").read_bytes() == (once / "manifest.json").read_bytes()
