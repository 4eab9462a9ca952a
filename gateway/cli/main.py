"""The command `tidemill`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer

from gateway.cli.output import EXIT_FAILED, stderr
from services.kit.errors import InvalidArgumentError, TidemillError

EXIT_USAGE = 2
DEBUG = "TIDEMILL_DEBUG"
"""Environment variable: show the traceback of unexpected errors."""


_MESH, _PIPELINES, _DATA = "The mesh on this machine", "Pipelines", "Data"
_USE, _LOOK = "Published models", "Observing"


@dataclass(frozen=True, slots=True)
class _Command:
    """A command, or a group of them, and the module of this package that has it."""

    name: str
    module: str
    panel: str
    attribute: str = ""
    settings: Mapping[str, Any] | None = None

    def add_to(self, cli: typer.Typer) -> None:
        found = getattr(import_module(f"gateway.cli.{self.module}"), self.attribute or self.name)
        if isinstance(found, typer.Typer):
            cli.add_typer(found, name=self.name, rich_help_panel=self.panel)
        else:
            settings = None if self.settings is None else dict(self.settings)
            cli.command(self.name, rich_help_panel=self.panel, context_settings=settings)(found)


# In the order of the help.
_COMMANDS = (
    _Command("up", "stack_commands", _MESH),
    _Command("down", "stack_commands", _MESH),
    _Command("status", "stack_commands", _MESH),
    _Command("doctor", "doctor_command", _MESH),
    _Command("keys", "key_commands", _MESH),
    _Command("certs", "certificate_commands", _MESH),
    _Command("quickstart", "cycle_commands", _PIPELINES),
    _Command("run", "cycle_commands", _PIPELINES),
    _Command("plan", "plan_command", _PIPELINES),
    _Command("advise", "advise_command", _PIPELINES),
    _Command("tune", "tune_command", _PIPELINES),
    _Command("follow", "cycle_commands", _PIPELINES, "follow_cycle"),
    _Command("cycles", "cycle_commands", _PIPELINES),
    _Command("cancel", "cycle_commands", _PIPELINES),
    _Command("why", "trigger_commands", _PIPELINES),
    _Command("triggers", "trigger_commands", _PIPELINES),
    _Command("sources", "source_commands", _DATA),
    _Command("dataset", "dataset_build", _DATA),
    _Command("clean", "clean_commands", _DATA),
    _Command("explain", "clean_commands", _DATA),
    _Command("dlq", "dead_letter_commands", _DATA),
    _Command("models", "model_commands", _USE),
    _Command("card", "card_command", _USE),
    _Command("route", "route_commands", _USE),
    _Command("rollout", "rollout_commands", _USE),
    _Command("predict", "model_commands", _USE),
    _Command("generate", "model_commands", _USE),
    # A rating of -1 is not an option.
    _Command("feedback", "model_commands", _USE, settings={"ignore_unknown_options": True}),
    _Command("review", "review_commands", _USE),
    _Command("judges", "judge_commands", _USE),
    _Command("quarantine", "exclusion_commands", _USE),
    _Command("erase", "exclusion_commands", _USE),
    _Command("audit", "rollout_commands", _LOOK),
    _Command("logs", "telemetry_commands", _LOOK),
    _Command("trace", "telemetry_commands", _LOOK),
    _Command("traces", "telemetry_commands", _LOOK),
)


def create_cli(wanted: str = "") -> typer.Typer:
    """The command with its subcommands; if one of them is wanted, with that one only, which loads in half the time."""
    cli = typer.Typer(
        name="tidemill",
        help="Turns raw text into better language models, cycle after cycle, and serves them.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    # A single command would not be a subcommand without a callback.
    cli.callback()(_options)
    for command in [each for each in _COMMANDS if each.name == wanted] or _COMMANDS:
        command.add_to(cli)
    return cli


def _show_version(wanted: bool) -> None:
    if wanted:
        # Here, for every other command starts faster without it.
        from importlib.metadata import version

        typer.echo(f"tidemill {version('tidemill')}")
        raise typer.Exit


def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", "-V", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: errors are shown as sentences, never as a traceback."""
    try:
        create_cli("".join(sys.argv[1:2]))()
    except TidemillError as error:
        console = stderr()
        console.print("tidemill: ", style="bold red", end="")
        console.print(error.message, markup=False, soft_wrap=True)
        for violation in error.violations:
            if violation.description not in error.message:
                console.print(f"  {violation.field}: {violation.description}", markup=False, soft_wrap=True)
        sys.exit(EXIT_USAGE if isinstance(error, InvalidArgumentError) else EXIT_FAILED)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        console = stderr()
        console.print("tidemill: ", style="bold red", end="")
        kind = type(error).__name__
        console.print(f"{kind}: {error} ({DEBUG}=1 shows where it comes from)", markup=False, soft_wrap=True)
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
