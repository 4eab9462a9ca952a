"""The command `tidemill`."""

from __future__ import annotations

import os
import sys

import typer

from gateway.cli import cycle_commands, model_commands, stack_commands, telemetry_commands
from gateway.cli.certificate_commands import certs
from gateway.cli.clean_commands import clean, explain
from gateway.cli.dataset_build import dataset
from gateway.cli.dead_letter_commands import dlq
from gateway.cli.doctor_command import doctor
from gateway.cli.exclusion_commands import erase, quarantine
from gateway.cli.judge_commands import judges
from gateway.cli.key_commands import keys
from gateway.cli.output import EXIT_FAILED, stderr
from gateway.cli.plan_command import plan
from gateway.cli.review_commands import review
from gateway.cli.rollout_commands import audit, rollout
from gateway.cli.route_commands import route
from gateway.cli.trigger_commands import triggers, why
from services.kit.errors import InvalidArgumentError, TidemillError

EXIT_USAGE = 2
DEBUG = "TIDEMILL_DEBUG"
"""Environment variable: show the traceback of unexpected errors."""


def create_cli() -> typer.Typer:
    """The command with its subcommands."""
    cli = typer.Typer(
        name="tidemill",
        help="Turns raw text into better language models, cycle after cycle, and serves them.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    mesh, pipelines, data = "The mesh on this machine", "Pipelines", "Data"
    use, look = "Published models", "Observing"
    cli.command(rich_help_panel=mesh)(stack_commands.up)
    cli.command(rich_help_panel=mesh)(stack_commands.down)
    cli.command(rich_help_panel=mesh)(stack_commands.status)
    cli.command(rich_help_panel=mesh)(doctor)
    cli.add_typer(keys, name="keys", rich_help_panel=mesh)
    cli.add_typer(certs, name="certs", rich_help_panel=mesh)
    cli.command(rich_help_panel=pipelines)(cycle_commands.quickstart)
    cli.command(rich_help_panel=pipelines)(cycle_commands.run)
    cli.command(rich_help_panel=pipelines)(plan)
    cli.command("follow", rich_help_panel=pipelines)(cycle_commands.follow_cycle)
    cli.command(rich_help_panel=pipelines)(cycle_commands.cycles)
    cli.command(rich_help_panel=pipelines)(cycle_commands.cancel)
    cli.command(rich_help_panel=pipelines)(why)
    cli.add_typer(triggers, name="triggers", rich_help_panel=pipelines)
    cli.add_typer(dataset, name="dataset", rich_help_panel=data)
    cli.add_typer(clean, name="clean", rich_help_panel=data)
    cli.command(rich_help_panel=data)(explain)
    cli.add_typer(dlq, name="dlq", rich_help_panel=data)
    cli.command(rich_help_panel=use)(model_commands.models)
    cli.add_typer(route, name="route", rich_help_panel=use)
    cli.add_typer(rollout, name="rollout", rich_help_panel=use)
    cli.command(rich_help_panel=use)(model_commands.predict)
    cli.command(rich_help_panel=use)(model_commands.generate)
    # A rating of -1 is not an option.
    cli.command(rich_help_panel=use, context_settings={"ignore_unknown_options": True})(model_commands.feedback)
    cli.command(rich_help_panel=look)(audit)
    cli.add_typer(review, name="review", rich_help_panel=use)
    cli.add_typer(judges, name="judges", rich_help_panel=use)
    cli.add_typer(quarantine, name="quarantine", rich_help_panel=use)
    cli.command(rich_help_panel=use)(erase)
    cli.command(rich_help_panel=look)(telemetry_commands.logs)
    cli.command(rich_help_panel=look)(telemetry_commands.trace)
    cli.command(rich_help_panel=look)(telemetry_commands.traces)
    return cli


def main() -> None:
    """Entry point: errors are shown as sentences, never as a traceback."""
    try:
        create_cli()()
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
