"""`tidemill route`: which versions of a model answer, and whom."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from tidemill.inference.v1.inference_service_pb2 import (
    GetRouteRequest,
    ListRoutesRequest,
    PromoteVersionRequest,
    RollBackModelRequest,
    SetCascadeRequest,
    SetRouteRequest,
)
from tidemill.inference.v1.route_pb2 import (
    VERSION_ROLE_CANARY,
    VERSION_ROLE_CANDIDATE,
    VERSION_ROLE_SERVING,
    VERSION_ROLE_SHADOW,
    Route,
    RoutedVersion,
    RouteEntry,
)

from gateway.cli.connection import Connection, connect
from gateway.cli.output import AddressOption, JsonOption, as_json, plain_table, print_json, print_whole, stdout
from gateway.cli.pages import pages
from gateway.cli.resource_names import model_name
from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.ids import new_id

_ROLES = {
    "serving": VERSION_ROLE_SERVING,
    "canary": VERSION_ROLE_CANARY,
    "shadow": VERSION_ROLE_SHADOW,
    "candidate": VERSION_ROLE_CANDIDATE,
}
_NAMES: Mapping[int, str] = {role: name for name, role in _ROLES.items()}
_SHARING = (VERSION_ROLE_SERVING, VERSION_ROLE_CANARY)
_ENTRY = re.compile(r"(?P<version>[1-9][0-9]*)(=(?P<weight>[0-9]+))?(:(?P<role>[a-z]+))?")
_ALIAS = re.compile(r"(?P<name>[a-z][a-z0-9-]*)=(?P<version>[1-9][0-9]*)")
# Loading several versions takes as long as publishing each.
_SET_S = 600

route = typer.Typer(help="Which versions of a model answer, and with what share of its calls.", no_args_is_help=True)

ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the audit trail.", show_default=False)]
Model = Annotated[str, typer.Argument(help="Name of a model; `tidemill models` lists them.", show_default=False)]


@route.command()
def show(
    model: Annotated[str, typer.Argument(help="Show the route of this model only.", show_default=False)] = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Shows the versions of each route."""
    with connect(address) as connection:
        found = [_get(connection, model)] if model else _all(connection)
    if json_wanted:
        print_json([as_json(item) for item in found])
        return
    for item in found:
        _print(item)
    if not found:
        stdout().print("No model is published yet; `tidemill run pipelines/headlines.yaml` makes one.")


@route.command("set")
def set_route(
    model: Model,
    versions: Annotated[
        list[str],
        typer.Argument(
            help="VERSION=WEIGHT:ROLE, such as 3=70 4=30:canary 5:shadow 6:candidate; the role is serving when left "
            "out. Versions that are not named leave the route.",
            show_default=False,
        ),
    ],
    alias: Annotated[
        list[str] | None,
        typer.Option("--alias", help="NAME=VERSION: a further name of a version; repeatable.", show_default=False),
    ] = None,
    etag: Annotated[str, typer.Option(help="Set it only if the route still has this etag.", show_default=False)] = "",
    reason: ReasonOption = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Replaces the route of a model; returns when all its versions are loaded."""
    entries = [_entry(text) for text in versions]
    aliases = dict(_alias(text) for text in alias or ())
    with connect(address) as connection:
        before = _get(connection, model)
        # Aliases are kept unless others are given.
        kept = {name: number for name, number in before.aliases.items() if number in {e.version for e in entries}}
        request = SetRouteRequest(
            request_id=new_id(),
            model=model_name(model),
            entries=entries,
            aliases=aliases if alias is not None else kept,
            etag=etag or before.etag,
            reason=reason,
        )
        now = connection.inference.SetRoute(request, metadata=connection.metadata, timeout=_SET_S).route
    _shown(now, json_wanted)


@route.command()
def promote(
    model: Model,
    version: Annotated[int, typer.Argument(help="Number of a version of its route.", min=1, show_default=False)],
    reason: ReasonOption = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Makes a version the serving one; the one before leaves the route, its users go to the new one."""
    with connect(address) as connection:
        request = PromoteVersionRequest(request_id=new_id(), model=model_name(model), version=version, reason=reason)
        now = connection.inference.PromoteVersion(request, metadata=connection.metadata, timeout=_SET_S).route
    _shown(now, json_wanted)


@route.command()
def rollback(
    model: Model,
    version: Annotated[
        int, typer.Argument(help="Version to return to; the one that served before when left out.", min=0)
    ] = 0,
    reason: ReasonOption = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Lets an earlier version serve again."""
    with connect(address) as connection:
        request = RollBackModelRequest(request_id=new_id(), model=model_name(model), version=version, reason=reason)
        connection.inference.RollBackModel(request, metadata=connection.metadata, timeout=_SET_S)
        now = _get(connection, model)
    _shown(now, json_wanted)


@route.command()
def cascade(
    model: Model,
    larger: Annotated[
        str, typer.Argument(help="Classifier that is asked when the model is not sure.", show_default=False)
    ] = "",
    min_confidence: Annotated[
        float | None,
        typer.Option(
            help="Ask it below this probability of the most probable label, above 0 up to 1.", show_default=False
        ),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(help="Calibrates the probabilities; above 1 for a model that is too sure of itself.", min=0.01),
    ] = 1.0,
    off: Annotated[bool, typer.Option("--off", help="Let the model answer alone.")] = False,
    etag: Annotated[str, typer.Option(help="Set it only if the route still has this etag.", show_default=False)] = "",
    reason: ReasonOption = "",
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Sets the larger classifier that answers when the small one is not confident."""
    if off == bool(larger) or (bool(larger) and min_confidence is None):
        raise InvalidArgumentError(
            "Give a larger model with --min-confidence, or --off.", violations=[FieldViolation("larger", "is missing")]
        )
    request = SetCascadeRequest(request_id=new_id(), model=model_name(model), etag=etag, reason=reason)
    if larger:
        request.cascade.model, request.cascade.temperature = model_name(larger), temperature
        request.cascade.min_confidence = min_confidence or 0.0
    with connect(address) as connection:
        now = connection.inference.SetCascade(request, metadata=connection.metadata, timeout=_SET_S).route
    _shown(now, json_wanted)


def _number(version: RoutedVersion) -> int:
    return int(version.name.rpartition("/")[2])


def _get(connection: Connection, model: str) -> Route:
    request = GetRouteRequest(model=model_name(model))
    return connection.inference.GetRoute(request, metadata=connection.metadata, timeout=30).route


def _all(connection: Connection) -> list[Route]:
    listed = pages(connection, connection.inference.ListRoutes, ListRoutesRequest(page_size=1000))
    return [item for page in listed for item in page.routes]


def _entry(text: str) -> RouteEntry:
    found = _ENTRY.fullmatch(text)
    role = "" if found is None else found["role"] or "serving"
    if found is None or role not in _ROLES:
        raise InvalidArgumentError(
            f"{text!r} is not a version of a route; write it as 3=70, 4=30:canary, 5:shadow or 6:candidate.",
            violations=[FieldViolation("versions", "not VERSION=WEIGHT:ROLE")],
        )
    # A version alone has all calls; the service refuses a share of 0.
    usual = 100 if role == "serving" else 0
    weight = int(found["weight"]) if found["weight"] is not None else usual
    return RouteEntry(version=int(found["version"]), role=_ROLES[role], weight=weight)


def _alias(text: str) -> tuple[str, int]:
    found = _ALIAS.fullmatch(text)
    if found is None:
        raise InvalidArgumentError(
            f"{text!r} is not an alias; write it as stable=3.", violations=[FieldViolation("alias", "not NAME=VERSION")]
        )
    return found["name"], int(found["version"])


def _shown(item: Route, json_wanted: bool) -> None:
    if json_wanted:
        print_json(as_json(item))
    else:
        _print(item)


def _print(item: Route) -> None:
    total = sum(version.weight for version in item.versions if version.role in _SHARING)
    table = plain_table()
    for column in (item.model.removeprefix("models/"), "role", "share", "weight", "build", "aliases"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("share", "weight") else "left")
    for version in item.versions:
        names = sorted(name for name, number in item.aliases.items() if number == _number(version))
        if version.role == VERSION_ROLE_SERVING:
            names.insert(0, "champion")
        shares = version.role in _SHARING
        cells: list[Any] = [
            f"version {_number(version)}",
            _NAMES.get(version.role, "serving"),
            f"{100 * version.weight / total:.1f} %" if shares and total else "",
            str(version.weight) if shares else "",
            version.precision,
            ", ".join(names),
        ]
        table.add_row(*cells)
    if not item.versions:
        table.add_row(item.withdrawn.message or "no version answers")
    print_whole(table)
    if item.HasField("cascade"):
        larger, behind = item.cascade.model.removeprefix("models/"), item.cascade
        at = f" at temperature {behind.temperature:g}" if behind.temperature not in (0, 1) else ""
        stdout().print(f"asks {larger} below a confidence of {behind.min_confidence:g}{at}")
