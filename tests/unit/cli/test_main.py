"""The command with all of its subcommands, or with one that loads faster."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from gateway.cli.main import create_cli

_NAMES = sorted(getattr(get_command(create_cli()), "commands", {}))


@pytest.mark.parametrize("name", _NAMES)
def test_a_command_is_the_same_alone_as_among_all(name: str) -> None:
    alone = CliRunner().invoke(create_cli(name), [name, "--help"])
    assert alone.exit_code == 0
    assert alone.stdout == CliRunner().invoke(create_cli(), [name, "--help"]).stdout


def test_a_command_loads_nothing_of_the_others() -> None:
    program = "import sys; from gateway.cli.main import create_cli; create_cli('logs'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "gateway.cli.telemetry_commands" in loaded
    assert not {"gateway.cli.cycle_commands", "gateway.cli.keys", "protovalidate"} & set(loaded)


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    result = CliRunner().invoke(create_cli("statsu"), ["statsu"])
    assert result.exit_code == 2
    assert "status" in result.output
