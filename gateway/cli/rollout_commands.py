"""`tidemill rollout` and `tidemill audit`: new versions on their way to users, and who decided what, and why."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from tidemill.pipeline.v1.rollout_pb2 import ModelRollout, RolloutStep
from tidemill.pipeline.v1.rollout_service_pb2 import (
    ApproveRolloutRequest,
    ForceRolloutRequest,
    FreezeRolloutRequest,
    GetRolloutRequest,
    ListAuditEntriesRequest,
    ListRolloutsRequest,
    ResumeRolloutRequest,
    RollBackRolloutRequest,
)

from gateway.cli.connection import Connection, connect
from gateway.cli.output import (
    AddressOption,
    JsonOption,
    as_json,
    plain_table,
    print_json,
    print_json_line,
    print_whole,
    stdout,
)
from gateway.cli.pages import pages
from gateway.cli.resource_names import model_name
from gateway.cli.views.text import moment
from services.kit.errors import not_found
from services.kit.ids import ID_PATTERN, new_id

_TIMEOUT_S = 30
_ACT_S = 600
"""Promoting may load a version first."""

rollout = typer.Typer(help="New versions on their way to users.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(help="A roll-out, or a model: its newest roll-out. `tidemill rollout list` lists them."),
]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the audit trail.", show_default=False)]


@rollout.command("list")
@rollout.command("ls", hidden=True)
def list_rollouts(
    model: Annotated[str, typer.Argument(help="Name of a model; all by default.", show_default=False)] = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Lists roll-outs, newest first."""
    with connect(address) as connection:
        request = ListRolloutsRequest(model=model_name(model) if model else "", page_size=500)
        listed = pages(connection, connection.rollouts.ListRollouts, request)
        found = [item for page in listed for item in page.rollouts]
    if json_wanted:
        print_json([as_json(item) for item in found])
        return
    table = _table("roll-out", "new version", "state", "step", "since", "why")
    for item in found:
        table.add_row(
            item.name,
            item.candidate.removeprefix("models/"),
            _state(item),
            _step(item.steps[item.step]),
            f"{moment(item.update_time):%Y-%m-%d %H:%M}",
            item.reason,
        )
    if found:
        print_whole(table)
    else:
        stdout().print("There are no roll-outs yet; a pipeline with `rollout: {shadow: {}, ab: {}}` makes one.")


@rollout.command()
def show(name: Name, address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Shows a roll-out: its steps, what both versions did in the current one, and what the figures say."""
    with connect(address) as connection:
        request = GetRolloutRequest(name=_resolve(connection, name))
        found = connection.rollouts.GetRollout(request, metadata=connection.metadata, timeout=_TIMEOUT_S).rollout
    if json_wanted:
        print_json(as_json(found))
    else:
        _print(found)


@rollout.command()
def approve(name: Name, reason: Reason = "", address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Lets a roll-out that waits for approval take its next step."""
    _act(name, address, json_wanted, lambda full: ApproveRolloutRequest(**_order(full, reason)), "ApproveRollout")


@rollout.command()
def rollback(name: Name, reason: Reason = "", address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Ends a roll-out: all users get the version before, at once."""
    _act(name, address, json_wanted, lambda full: RollBackRolloutRequest(**_order(full, reason)), "RollBackRollout")


@rollout.command()
def freeze(name: Name, reason: Reason = "", address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Holds a roll-out at its step; guard-rails still roll it back."""
    _act(name, address, json_wanted, lambda full: FreezeRolloutRequest(**_order(full, reason)), "FreezeRollout")


@rollout.command()
def resume(name: Name, reason: Reason = "", address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Resumes a held roll-out."""
    _act(name, address, json_wanted, lambda full: ResumeRolloutRequest(**_order(full, reason)), "ResumeRollout")


@rollout.command()
def force(name: Name, reason: Reason = "", address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Promotes the new version now, whatever the figures say."""
    _act(name, address, json_wanted, lambda full: ForceRolloutRequest(**_order(full, reason)), "ForceRollout")


def audit(
    resource: Annotated[
        str,
        typer.Argument(help="Only about this: models/reviews, pipelines/reviews, rollouts/ID, …", show_default=False),
    ] = "",
    export: Annotated[bool, typer.Option("--export", help="Print every entry as a JSON line.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Maximum entries to show.", min=1, max=1000)] = 50,
    address: AddressOption = None,
) -> None:
    """Shows who did what, and why: roll-outs, routes, triggers, quarantines and erasures; newest first."""
    with connect(address) as connection:
        request = ListAuditEntriesRequest(resource=resource, page_size=1000 if export else lines)
        if export:
            for page in pages(connection, connection.rollouts.ListAuditEntries, request):
                for entry in page.entries:
                    print_json_line(as_json(entry))
            return
        call = connection.rollouts.ListAuditEntries
        found = call(request, metadata=connection.metadata, timeout=_TIMEOUT_S).entries
    table = _table("when", "who", "what", "on", "why")
    for entry in found:
        when = f"{moment(entry.create_time):%Y-%m-%d %H:%M:%S}"
        table.add_row(when, entry.actor, entry.action, entry.resource, entry.reason)
    if found:
        print_whole(table)
    else:
        stdout().print("The audit trail is empty.")


def _act(name: str, address: str | None, json_wanted: bool, request_of: Callable[[str], Any], method: str) -> None:
    with connect(address) as connection:
        request = request_of(_resolve(connection, name))
        call = getattr(connection.rollouts, method)
        found = call(request, metadata=connection.metadata, timeout=_ACT_S).rollout
    if json_wanted:
        print_json(as_json(found))
    else:
        stdout().print(f"{found.name}: {_state(found)}: {found.reason}", soft_wrap=True)


def _order(full: str, reason: str) -> dict[str, str]:
    return {"request_id": new_id(), "name": full, "reason": reason}


def _resolve(connection: Connection, name: str) -> str:
    """The resource name of a roll-out, or of a model's newest one."""
    plain = name.removeprefix("rollouts/")
    if re.fullmatch(ID_PATTERN, plain):
        return f"rollouts/{plain}"
    request = ListRolloutsRequest(model=model_name(name), page_size=1)
    found = connection.rollouts.ListRollouts(request, metadata=connection.metadata, timeout=_TIMEOUT_S).rollouts
    if not found:
        raise not_found("rollout", name, "`tidemill rollout list` lists them.")
    return str(found[0].name)


def _state(item: ModelRollout) -> str:
    word = ModelRollout.State.Name(item.state).removeprefix("STATE_").lower().replace("_", " ")
    return f"{word}, frozen" if item.frozen else word


def _step(step: RolloutStep) -> str:
    kind = RolloutStep.Kind.Name(step.kind).removeprefix("KIND_").lower()
    return f"{kind} {step.share:.3g}" if step.share else kind


def _table(*columns: str) -> Table:
    table = plain_table()
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column != "why")
    return table


def _print(item: ModelRollout) -> None:
    console: Console = stdout()
    console.print(f"{item.name}  {item.candidate} beside {item.champion or 'none yet'}", soft_wrap=True)
    console.print(f"{_state(item)}: {item.reason}", soft_wrap=True)
    steps = _table("step", "began", "ended", "why")
    for number, step in enumerate(item.steps):
        mark = "→ " if number == item.step and not step.HasField("end_time") else "  "
        began = f"{moment(step.start_time):%m-%d %H:%M:%S}" if step.HasField("start_time") else ""
        ended = f"{moment(step.end_time):%m-%d %H:%M:%S}" if step.HasField("end_time") else ""
        steps.add_row(f"{mark}{_step(step)}", began, ended, step.reason)
    print_whole(steps)
    if item.arms:
        arms = _table("version", "share", "calls", "failed", "refused", "p99", "users", "judged", "mean")
        for arm in item.arms:
            arms.add_row(
                arm.model_version.rpartition("/")[2],
                f"{arm.share:.1%}",
                f"{arm.answers:,}",
                f"{arm.errors:,}",
                f"{arm.refusals:,}",
                f"{arm.p99_latency_ms:,.0f} ms",
                f"{arm.users:,}",
                f"{arm.judged_users:,}",
                f"{arm.mean:.3f}" if arm.judged_users else "",
            )
        print_whole(arms)
    if item.HasField("difference"):
        console.print(f"advantage {item.difference:+.4f}, between {item.lower:+.4f} and {item.upper:+.4f}")
