"""`tidemill certs`: the mesh's own certificate authority, for services on other machines."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.mesh_owner import as_owner
from gateway.cli.output import JsonOption, plain_table, print_json, print_whole, stdout
from services.kit.config import home_dir, state_dir

if TYPE_CHECKING:
    from infra.stack.certificates import Authority, Issued

certs = typer.Typer(
    help="Certificates by which services on several machines authenticate each other.", no_args_is_help=True
)


def _authority() -> Authority:
    from infra.stack.certificates import Authority
    from infra.stack.layout import Layout

    as_owner()
    return Authority(Layout.of(home_dir(), state_dir()).state.peer_keys)


@certs.command("issue")
def issue(
    name: Annotated[str, typer.Argument(help="Name of a machine or a service, such as gpu1.", show_default=False)],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address by which others reach it; may be given several times.", show_default=False),
    ] = None,
    days: Annotated[int, typer.Option(help="How long it is valid.", min=1, max=825)] = 90,
    json_wanted: JsonOption = False,
) -> None:
    """Issues a certificate into a folder, to be copied to its machine; the same name again renews it."""
    from datetime import timedelta

    issued = _authority().issue(name, host or (), timedelta(days=days))
    if json_wanted:
        print_json(_plain(issued))
        return
    out = stdout()
    out.print(f"{issued.folder}: copy it to {name}, and set there", markup=False, soft_wrap=True)
    for variable, file in (("CERT", "certificate"), ("KEY", "key"), ("CA", "authority")):
        out.print(f"  TIDEMILL_PEER_{variable}=…/{file}.pem", markup=False, soft_wrap=True)


@certs.command("list")
def show(json_wanted: JsonOption = False) -> None:
    """Shows the authority and the certificates that are on this machine."""
    authority = _authority()
    issued, authorities = authority.issued, authority.authorities
    if json_wanted:
        ends = [each.not_valid_after_utc.isoformat() for each in authorities]
        print_json({"authorities": ends, "certificates": [_plain(each) for each in issued]})
        return
    table = plain_table()
    for column in ("certificate", "reached as", "until", ""):
        table.add_column(column, overflow="fold")
    now = datetime.now(UTC)
    for each in issued:
        note = "expired" if each.end <= now else "renew it: `tidemill certs renew`" if each.due(now) else ""
        table.add_row(each.name, ", ".join(each.hosts), f"{each.end:%Y-%m-%d}", note)
    print_whole(table)
    for number, trusted in enumerate(authorities):
        what = "The authority" if number == 0 else "The previous authority, still trusted,"
        stdout().print(f"{what} holds until {trusted.not_valid_after_utc:%Y-%m-%d}.")


@certs.command("renew")
def renew(
    every: Annotated[bool, typer.Option("--all", help="Also those that are not due yet.")] = False,
) -> None:
    """Renews what is due, as a running mesh does by itself. Copy renewed folders to their machines again."""
    renewed = _authority().renew(all_of_them=every)
    for each in renewed:
        stdout().print(f"{each.folder}: until {each.end:%Y-%m-%d}", markup=False, soft_wrap=True)
    if not renewed:
        stdout().print("Nothing is due.")


@certs.command("rotate")
def rotate() -> None:
    """Creates a new authority; both are trusted until `tidemill certs retire`. Copy the folders to their machines."""
    _authority().rotate()
    stdout().print("Created a new authority; machines that only know the old one keep working.")


@certs.command("retire")
def retire() -> None:
    """Ends the trust in the previous authority: certificates that it signed are refused from now on."""
    _authority().retire()
    stdout().print("Only the current authority is trusted here; copy the folders to the other machines again.")


def _plain(issued: Issued) -> dict[str, object]:
    return {
        "name": issued.name,
        "folder": str(issued.folder),
        "hosts": list(issued.hosts),
        "expire_time": issued.end.isoformat(),
    }
