"""Compose files hold the schema; what a container runs is a command that exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gateway.cli.main import create_cli

ROOT = Path(__file__).parents[2]
COMPOSE = sorted(ROOT.glob("infra/**/compose*.yaml"))
DOCKERFILES = sorted(ROOT.glob("infra/**/Dockerfile*"))


def test_there_are_some() -> None:
    assert COMPOSE
    assert DOCKERFILES


@pytest.mark.parametrize("path", COMPOSE, ids=str)
def test_a_compose_file_holds_the_schema_and_names_files_that_exist(path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    for service in yaml.safe_load(path.read_text())["services"].values():
        context = path.parent / service["build"]["context"]
        assert (context / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("path", DOCKERFILES, ids=str)
def test_a_dockerfile_passes_the_linter(path: Path) -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert linter is not None
    result = subprocess.run(
        [linter, "--failure-threshold", "info", str(path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=str)
def test_what_a_container_runs_exists(path: Path) -> None:
    found = re.findall(r"^(?:CMD|HEALTHCHECK .*CMD) (\[.*\])$", path.read_text(), re.MULTILINE)
    assert found
    for text in found:
        program, *arguments = json.loads(text)
        assert program == "tidemill"
        known = CliRunner().invoke(create_cli(), [*arguments, "--help"])
        assert known.exit_code == 0, known.output
