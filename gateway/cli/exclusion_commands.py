"""`tidemill quarantine` and `tidemill erase`: what is left out of training, and who is erased."""

from __future__ import annotations

from typing import Annotated

import typer
from tidemill.pipeline.v1.exclusion_service_pb2 import (
    EraseUserRequest,
    Exclusion,
    LiftQuarantineRequest,
    ListExclusionsRequest,
    QuarantineFeedbackRequest,
)

from gateway.cli.connection import connect
from gateway.cli.output import AddressOption, JsonOption, as_json, print_json, stdout
from gateway.cli.pages import pages
from gateway.cli.views.text import moment
from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.ids import new_id

TenantOption = Annotated[str, typer.Option("--tenant", help="Tenant of the user.", show_default=False)]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it is kept, so name no one.", show_default=False)]

quarantine = typer.Typer(help="Feedback of which nothing is learnt: add, lift, list.", no_args_is_help=True)


@quarantine.command()
def add(
    key: Annotated[str, typer.Option("--key", help="Id of an API key.", show_default=False)] = "",
    user: Annotated[str, typer.Option("--user", help="Author of feedback.", show_default=False)] = "",
    person: Annotated[str, typer.Option("--person", help="Pseudonym, as data sets name it.", show_default=False)] = "",
    tenant: TenantOption = "",
    reason: ReasonOption = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Excludes feedback of an API key or a person from training, and lists the data sets and models that used it."""
    if sum(map(bool, (key, user, person))) != 1:
        what = "give one of --key, --user and --person"
        raise InvalidArgumentError(f"{what}.", violations=[FieldViolation("whose", what)])
    request = QuarantineFeedbackRequest(request_id=new_id(), tenant=tenant, reason=reason)
    if key:
        request.api_key = key
    elif user:
        request.author = user
    else:
        request.person = person
    with connect(address) as connection:
        response = connection.exclusion.QuarantineFeedback(request, metadata=connection.metadata, timeout=60)
    _show(response.exclusion, json_wanted)


@quarantine.command()
def lift(
    name: Annotated[str, typer.Argument(help="exclusions/EXCLUSION", show_default=False)],
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Ends a quarantine."""
    with connect(address) as connection:
        request = LiftQuarantineRequest(request_id=new_id(), name=name)
        response = connection.exclusion.LiftQuarantine(request, metadata=connection.metadata, timeout=60)
    _show(response.exclusion, json_wanted)


@quarantine.command("list")
def list_exclusions(address: AddressOption = None, json_wanted: JsonOption = False) -> None:
    """Lists quarantines and erasures, with the data sets and models that they affect."""
    with connect(address) as connection:
        listed = pages(connection, connection.exclusion.ListExclusions, ListExclusionsRequest(page_size=500))
        found = [item for page in listed for item in page.exclusions]
    if json_wanted:
        print_json([as_json(item) for item in found])
        return
    for item in found:
        _show(item, False)
    if not found:
        stdout().print("Nothing is in quarantine, and no one was erased.")


def erase(
    user: Annotated[str, typer.Option("--user", help="Author of feedback.", show_default=False)],
    tenant: TenantOption = "",
    reason: ReasonOption = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Deletes what a person gave, lists what learnt from it, and starts the cycles that learn without it."""
    request = EraseUserRequest(request_id=new_id(), author=user, tenant=tenant, reason=reason)
    with connect(address) as connection:
        response = connection.exclusion.EraseUser(request, metadata=connection.metadata, timeout=120)
    _show(response.exclusion, json_wanted)


def _show(found: Exclusion, json_wanted: bool) -> None:
    if json_wanted:
        print_json(as_json(found))
        return
    out = stdout()
    kind = Exclusion.Kind.Name(found.kind).removeprefix("KIND_").lower()
    lifted = f", lifted {moment(found.lift_time):%Y-%m-%d %H:%M}" if found.HasField("lift_time") else ""
    whose, when = found.api_key or found.person, f"{moment(found.create_time):%Y-%m-%d %H:%M}"
    out.print(f"{found.name}  {kind} of {whose}, {when}{lifted}", markup=False, soft_wrap=True)
    if found.kind == Exclusion.KIND_ERASURE:
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(found.removed.items()))
        out.print(f"  deleted: {counts}", markup=False, soft_wrap=True)
        for name in found.rewritten_versions:
            out.print(f"  {name} was rewritten without it", markup=False, soft_wrap=True)
        if found.HasField("complete_time"):
            done = f"complete since {moment(found.complete_time):%Y-%m-%d %H:%M}: no data set holds it"
        else:
            done = "not complete: cleaning's records and data sets follow; `tidemill quarantine list` shows when"
        out.print(f"  {done}", markup=False, soft_wrap=True)
    for item in found.affected:
        made = " → ".join(name for name in (item.dataset_version, item.run, item.model_version) if name)
        out.print(f"  learnt from {item.records:,} records: {item.cycle}  {made}", markup=False, soft_wrap=True)
    for name in found.ordered_pipelines:
        out.print(f"  a cycle of {name} was ordered", markup=False, soft_wrap=True)
