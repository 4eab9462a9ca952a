"""The command with all of its subcommands, or with one that loads faster."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

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


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_it_names_its_version(option: str) -> None:
    result = CliRunner().invoke(create_cli(option), [option])
    assert (result.exit_code, result.stdout) == (0, f"tidemill {version('tidemill')}\n")


_GROUPS = {
    name: command
    for name, command in getattr(get_command(create_cli()), "commands", {}).items()
    if hasattr(command, "commands")
}


@pytest.mark.parametrize("name", sorted(_GROUPS))
def test_a_group_lists_with_list_and_names_its_commands_in_its_help(name: str) -> None:
    shown = [each for each, command in _GROUPS[name].commands.items() if not command.hidden]
    assert "ls" not in shown
    _, names, listed = _GROUPS[name].help.partition(": ")
    if names:
        assert listed.removesuffix(".").split(", ") == shown


@pytest.mark.parametrize("name", ["dataset", "dlq", "rollout"])
def test_ls_still_works_where_it_was(name: str) -> None:
    assert _GROUPS[name].commands["ls"].callback is not None
    assert CliRunner().invoke(create_cli(name), [name, "ls", "--help"]).exit_code == 0
