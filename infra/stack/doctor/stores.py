"""Where a mesh keeps its databases and artefacts: files of its state, or the stores that its environment names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from infra.stack.layout import Layout
from infra.stack.state import read_state
from infra.stack.topology import SERVICES, STORES


@dataclass(frozen=True, slots=True)
class Database:
    """A service's database: a file, or a schema of a server."""

    service: str
    url: str
    """SQLAlchemy URL; the same for all services where `file` is None."""
    file: Path | None
    migrations: Path
    """Alembic's script folder."""


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores of a mesh. `database_url` is empty where each service has a file."""

    database_url: str
    databases: tuple[Database, ...]
    artifacts: str
    """fsspec URL."""
    mlflow: str
    """MLflow's URI."""

    @classmethod
    def of(cls, layout: Layout) -> Stores:
        """The stores of the mesh that runs, else those that this process's environment names."""
        named = _environment(layout)
        url, state = named.get("TIDEMILL_DATABASE_URL", ""), layout.state
        databases = []
        for service in SERVICES:
            migrations = _migrations(service.module)
            if migrations is not None:
                file = None if url else state.databases / f"{service.name}.sqlite"
                databases.append(Database(service.name, url or f"sqlite:///{file}", file, migrations))
        return cls(
            url,
            tuple(databases),
            named.get("TIDEMILL_ARTIFACTS_URL") or f"file://{state.artifacts}",
            named.get("TIDEMILL_MLFLOW_URI") or f"sqlite:///{state.mlflow}",
        )


def _environment(layout: Layout) -> Mapping[str, str]:
    """The variables in `STORES`, as the mesh has them that runs."""
    stack, own = read_state(layout), os.environ
    if stack.running and stack.pid is not None and stack.pid != os.getpid():
        # Gone since, or another user's.
        try:
            return _set(psutil.Process(stack.pid).environ())
        except psutil.Error:
            pass
    return _set(own)


def _set(environment: Mapping[str, str]) -> Mapping[str, str]:
    return {name: environment[name] for name in STORES if environment.get(name)}


def _migrations(module: str) -> Path | None:
    """The script folder of a service; None if it has no database. Does not import the service."""
    spec = find_spec(module)
    for root in (spec.submodule_search_locations or ()) if spec is not None else ():
        for room in ("adapters", "keys"):
            folder = Path(root) / room / "migrations"
            if folder.is_dir():
                return folder
    return None
