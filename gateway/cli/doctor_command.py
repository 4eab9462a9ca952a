"""`tidemill doctor`: what is wrong with the mesh on this machine, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.mesh_owner import as_owner
from gateway.cli.output import EXIT_FAILED, JsonOption, print_json, stdout
from gateway.cli.views.doctor import report
from services.kit.config import home_dir, state_dir

if TYPE_CHECKING:
    from infra.stack.doctor.findings import Finding


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Repair what is safe to repair.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Checks the mesh: disk, processes, databases, artefacts. Exits with 1 if something is wrong."""
    from infra.stack.doctor import databases, mesh, stored
    from infra.stack.doctor.findings import Level, examine
    from infra.stack.layout import Layout

    as_owner()
    layout = Layout.of(home_dir(), state_dir())
    checks = [*mesh.checks(layout), *databases.checks(layout), *stored.checks(layout)]
    found = examine(checks, repair=repair)
    if as_json:
        print_json({"versions": _versions(), "state": str(layout.state.root), "findings": [_plain(f) for f in found]})
    else:
        stdout().print(report([check.name for check in checks], found, _versions()), soft_wrap=True)
    if any(each.level is Level.FAULT and not each.repaired for each in found):
        raise typer.Exit(EXIT_FAILED)


def _versions() -> dict[str, str]:
    from infra.stack.errors import StackError
    from infra.stack.layout import ELASTICSEARCH_VERSION, KAFKA_VERSION
    from infra.stack.triton import server_version

    try:
        server = server_version()
    except StackError:
        server = ""
    return {
        "tidemill": importlib.metadata.version("tidemill"),
        "python": platform.python_version(),
        "kafka": KAFKA_VERSION,
        "elasticsearch": ELASTICSEARCH_VERSION,
        "triton": server or "unknown",
    }


def _plain(finding: Finding) -> dict[str, object]:
    return {
        "check": finding.check,
        "level": finding.level.value,
        "reason": finding.reason,
        "message": finding.message,
        "remedy": finding.remedy,
        "repairable": finding.repair is not None,
        "repaired": finding.repaired,
    }
