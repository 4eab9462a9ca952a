"""`tidemill run`, `follow`, `cycles`, `cancel`, `quickstart`: running pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from tidemill.pipeline.v1.cycle_pb2 import Cycle, Stage
from tidemill.pipeline.v1.pipeline_service_pb2 import (
    CancelCycleRequest,
    CreateCycleRequest,
    GetCycleRequest,
    ListCyclesRequest,
)

from gateway.cli import stack_commands
from gateway.cli.allowed_sources import allow, wanted_roots
from gateway.cli.connection import Connection, connect
from gateway.cli.file_inputs import AllowOption, assets_of, make_readable, missing_assets
from gateway.cli.follow import Detached, follow
from gateway.cli.mesh_owner import show_to_mesh
from gateway.cli.output import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_REJECTED,
    AddressOption,
    JsonOption,
    as_json,
    plain_table,
    print_json,
    print_whole,
    program,
    python,
    stderr,
    stdout,
)
from gateway.cli.resource_names import pipeline_name
from gateway.cli.source_check import check_base_model, check_model_name, check_recipe, check_sources
from gateway.cli.views.summary import next_steps, print_next_steps, summary
from gateway.cli.views.text import moment
from services.kit.errors import InvalidArgumentError, UnavailableError
from services.kit.ids import new_id

if TYPE_CHECKING:
    from gateway.cli.pipeline_file import PipelineFile

# The service that does the work of a stage.
_SERVICE_OF = {"collect": "ingest", "clean": "cleaning", "train": "training", "publish": "inference"}

PipelinePath = Annotated[
    Path, typer.Argument(help="A pipeline file, such as pipelines/headlines.yaml.", show_default=False)
]
CycleName = Annotated[
    str, typer.Argument(help="pipelines/PIPELINE/cycles/CYCLE, or the name of a pipeline for its newest cycle.")
]


def _load(path: Path, training: Path | None = None) -> PipelineFile:
    from gateway.cli.pipeline_file import load_pipeline

    return load_pipeline(path, training)


def _exit_code(cycle: Cycle) -> int:
    codes = {Cycle.STATE_SUCCEEDED: 0, Cycle.STATE_UNCHANGED: 0, Cycle.STATE_REJECTED: EXIT_REJECTED}
    return codes.get(cycle.state, EXIT_FAILED)


def _start(connection: Connection, file: PipelineFile, console: Console) -> Cycle:
    request = CreateCycleRequest(request_id=new_id(), spec=file.spec)
    try:
        with connection.errors():
            cycle = connection.pipeline.CreateCycle(request, metadata=connection.metadata, timeout=60).cycle
    except InvalidArgumentError as error:
        raise file.locate(error) from error
    console.print(f"{file.spec.name}: {cycle.name}", style="bold", markup=False)
    return cycle


def _watch(connection: Connection, name: str, console: Console, json_wanted: bool) -> Cycle:
    """Follows a cycle and shows its results; exits if the user stops watching."""
    try:
        cycle = follow(connection, name, console)
    except Detached:
        console.print("\nYou stopped watching; the cycle continues in the mesh.", style="yellow")
        for words, command in (("watch it again", "follow"), ("stop it", "cancel")):
            console.print(f"  {words:<16} {program()} {command} {name}", markup=False, soft_wrap=True)
        console.print("Started again with the same file, `tidemill run` and `make run` join it.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if json_wanted:
        print_json(as_json(cycle))
        return cycle
    out = stdout()
    out.print(summary(cycle, out.width))
    if cycle.state == Cycle.STATE_SUCCEEDED:
        target = connection.target
        print_next_steps(out, next_steps(cycle, target, program(), python()))
    elif cycle.state == Cycle.STATE_FAILED:
        failed = next((stage.name for stage in cycle.stages if stage.state == Stage.STATE_FAILED), "")
        service = _SERVICE_OF.get(failed, "pipeline")
        hint = f'{program()} logs "level:error service:{service}"'
        out.print(f"\nThe service says: {hint}", markup=False)
    return cycle


def run(
    pipeline: PipelinePath,
    training: Annotated[
        Path | None,
        typer.Option(help="File with a training that takes the place of the pipeline's own.", show_default=False),
    ] = None,
    follow_it: Annotated[bool, typer.Option("--follow/--detach", help="Watch it to its end.")] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the file, its sources and its base model.")
    ] = False,
    more: AllowOption = None,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Runs one cycle of a pipeline and shows its results. Joins a running cycle of the same file."""
    file = _load(pipeline, training)
    console = stderr()
    if check:
        check_sources(file)
        check_base_model(file)
        left = ""
        try:
            with connect(address) as connection:
                check_recipe(file, connection)
                check_model_name(file, connection)
        except UnavailableError:
            left = (
                " Its operators and the base model's name were not checked: the mesh that knows them does not answer."
            )
        if address is None and (missing := missing_assets(file.spec)):
            left += f" Not on this machine yet: {', '.join(missing)}; `tidemill run` fetches them."
        console.print(f"{pipeline}: no errors found without running it.{left}", markup=False, soft_wrap=True)
        return
    make_readable(file, more or (), address)
    with connect(address) as connection:
        cycle = _start(connection, file, console)
        if not follow_it:
            if json_wanted:
                print_json(as_json(cycle))
            else:
                stdout().print(f"{program()} follow {cycle.name}", markup=False, soft_wrap=True)
            return
        ended = _watch(connection, cycle.name, console, json_wanted)
    raise typer.Exit(_exit_code(ended))


def quickstart(
    pipeline: PipelinePath = Path("pipelines/headlines.yaml"),
    json_wanted: JsonOption = False,
) -> None:
    """From nothing to a served model: checks the machine, fetches files, starts the mesh, runs a pipeline."""
    console = stderr()
    file = _load(pipeline)
    console.rule("1/3 · this machine and what it needs", align="left", style="bright_black")
    stack_commands.check_machine()
    with stack_commands.resumable(console, "the same command"):
        stack_commands.fetch(console, assets_of(file.spec))
        console.rule("2/3 · the mesh", align="left", style="bright_black")
        roots = wanted_roots(file)
        show_to_mesh(roots)
        stack_commands.start(console)
    console.rule(f"3/3 · {file.spec.name}", align="left", style="bright_black")
    allow(roots, file)
    with connect(None) as connection:
        cycle = _start(connection, file, console)
        ended = _watch(connection, cycle.name, console, json_wanted)
    raise typer.Exit(_exit_code(ended))


def follow_cycle(name: CycleName, address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Watches a cycle to its end and shows its results; an ended one is shown at once."""
    with connect(address) as connection:
        ended = _watch(connection, _resolve(connection, name), stderr(), json_wanted)
    raise typer.Exit(_exit_code(ended))


def _resolve(connection: Connection, name: str) -> str:
    """The full name of a cycle."""
    if "/cycles/" in name:
        return name
    pipeline = pipeline_name(name)
    request = ListCyclesRequest(pipeline=pipeline, page_size=1)
    found = connection.pipeline.ListCycles(request, metadata=connection.metadata, timeout=30).cycles
    if not found:
        raise InvalidArgumentError(f"The pipeline {pipeline} has no cycle yet. Start one with `tidemill run FILE`.")
    return found[0].name


def cycles(
    pipeline: Annotated[str, typer.Argument(help="Name of a pipeline; all by default.", show_default=False)] = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Lists cycles, newest first."""
    name = pipeline_name(pipeline) if pipeline else ""
    with connect(address) as connection:
        request = ListCyclesRequest(pipeline=name, page_size=100)
        found = connection.pipeline.ListCycles(request, metadata=connection.metadata, timeout=30).cycles
    if json_wanted:
        print_json([as_json(cycle) for cycle in found])
        return
    table = plain_table()
    for column in ("cycle", "state", "stage", "started", "published"):
        table.add_column(column, overflow="fold", no_wrap=column != "published")
    for cycle in found:
        running = next((stage.name for stage in cycle.stages if not stage.HasField("end_time")), "")
        table.add_row(
            cycle.name.removeprefix("pipelines/"),
            Cycle.State.Name(cycle.state).removeprefix("STATE_").lower(),
            running if cycle.state == Cycle.STATE_RUNNING else "",
            f"{moment(cycle.create_time):%Y-%m-%d %H:%M}",
            cycle.model_version.removeprefix("models/"),
        )
    if found:
        print_whole(table)
    else:
        stdout().print("There are no cycles yet.")


def cancel(name: CycleName, address: AddressOption = None) -> None:
    """Cancels a cycle and the work that it started; finished work is kept for the next one."""
    with connect(address) as connection:
        full = _resolve(connection, name)
        request = CancelCycleRequest(request_id=new_id(), name=full)
        connection.pipeline.CancelCycle(request, metadata=connection.metadata, timeout=60)
        state = connection.pipeline.GetCycle(GetCycleRequest(name=full), metadata=connection.metadata, timeout=30)
    word = Cycle.State.Name(state.cycle.state).removeprefix("STATE_").lower()
    stdout().print(f"{full}: {word}", markup=False, soft_wrap=True)
