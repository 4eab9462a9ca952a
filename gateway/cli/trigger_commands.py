"""`tidemill why` and `tidemill triggers`: when a pipeline starts a cycle by itself, and why not now."""

from __future__ import annotations

from typing import Annotated

import typer
from tidemill.pipeline.v1.trigger_pb2 import Trigger
from tidemill.pipeline.v1.trigger_service_pb2 import (
    GetTriggerRequest,
    ListTriggersRequest,
    PauseTriggerRequest,
    PutTriggerRequest,
    ResumeTriggerRequest,
)

from gateway.cli.connection import connect
from gateway.cli.cycle_commands import PipelinePath
from gateway.cli.file_inputs import AllowOption, make_readable
from gateway.cli.output import (
    AddressOption,
    JsonOption,
    as_json,
    plain_table,
    print_json,
    print_whole,
    stdout,
)
from gateway.cli.pages import pages
from gateway.cli.pipeline_file import load_pipeline
from gateway.cli.resource_names import pipeline_name
from gateway.cli.views.text import moment
from services.kit.errors import InvalidArgumentError
from services.kit.ids import new_id

PipelineName = Annotated[str, typer.Argument(help="Name of a pipeline.", show_default=False)]

triggers = typer.Typer(help="What starts the cycles of a pipeline: put, list, pause, resume.", no_args_is_help=True)


def why(pipeline: PipelineName, address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Says why a pipeline's triggers do or do not start a cycle now."""
    with connect(address) as connection:
        request = GetTriggerRequest(pipeline=pipeline_name(pipeline))
        found = connection.trigger.GetTrigger(request, metadata=connection.metadata, timeout=30).trigger
    _show(found, json_wanted)


@triggers.command()
def put(
    pipeline: PipelinePath,
    more: AllowOption = None,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Sets the triggers of a pipeline file without running it; `tidemill run` sets them, too."""
    file = load_pipeline(pipeline)
    if not file.spec.HasField("triggers"):
        raise InvalidArgumentError(f"{pipeline}: triggers: the file has none.", reason="PIPELINE_FILE")
    # The cycles that they start find what they need, as those of `run` do.
    make_readable(file, more or (), address)
    with connect(address) as connection:
        request = PutTriggerRequest(request_id=new_id(), spec=file.spec)
        try:
            with connection.errors():
                response = connection.trigger.PutTrigger(request, metadata=connection.metadata, timeout=60)
        except InvalidArgumentError as error:
            raise file.locate(error) from error
    _show(response.trigger, json_wanted)


@triggers.command("list")
def list_triggers(address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Lists the pipelines with triggers."""
    with connect(address) as connection:
        listed = pages(connection, connection.trigger.ListTriggers, ListTriggersRequest(page_size=1000))
        found = [item for page in listed for item in page.triggers]
    if json_wanted:
        print_json([as_json(item) for item in found])
        return
    table = plain_table()
    for column in ("pipeline", "state", "what happens"):
        table.add_column(column, no_wrap=column != "what happens", overflow="fold")
    for item in found:
        due = any(check.met for check in item.checks)
        state = "paused" if item.paused else "held" if due and item.holds else "due" if due else "waits"
        table.add_row(item.pipeline.removeprefix("pipelines/"), state, item.summary)
    if found:
        print_whole(table)
    else:
        stdout().print("No pipeline has triggers; see `triggers` in docs/pipeline.md.")


@triggers.command()
def pause(
    pipeline: PipelineName,
    reason: Annotated[str, typer.Option("--reason", help="Reason that `tidemill why` shows.", show_default=False)] = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Pauses the triggers of a pipeline until they are resumed."""
    with connect(address) as connection:
        request = PauseTriggerRequest(request_id=new_id(), pipeline=pipeline_name(pipeline), reason=reason)
        found = connection.trigger.PauseTrigger(request, metadata=connection.metadata, timeout=30).trigger
    _show(found, json_wanted)


@triggers.command()
def resume(pipeline: PipelineName, address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Ends a pause."""
    with connect(address) as connection:
        request = ResumeTriggerRequest(request_id=new_id(), pipeline=pipeline_name(pipeline))
        found = connection.trigger.ResumeTrigger(request, metadata=connection.metadata, timeout=30).trigger
    _show(found, json_wanted)


def _show(found: Trigger, json_wanted: bool) -> None:
    if json_wanted:
        print_json(as_json(found))
        return
    out = stdout()
    out.print(found.summary, markup=False, soft_wrap=True)
    for check in found.checks:
        out.print(f"  {'✓' if check.met else '·'} {check.condition}: {check.why}", markup=False, soft_wrap=True)
    for hold in found.holds:
        out.print(f"  ✗ {hold}", markup=False, soft_wrap=True)
    for firing in found.firings:
        what = firing.cycle or firing.error or "being started"
        words = f"{moment(firing.fire_time):%Y-%m-%d %H:%M}  {what}  {' '.join(firing.reasons)}"
        out.print(f"  {words}", style="bright_black", markup=False, soft_wrap=True)
