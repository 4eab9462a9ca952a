"""Fixtures for all tests: service databases, and the number of Hypothesis examples."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from sqlalchemy import Engine
from xdist.remote import Producer

from services.kit.storage.database import open_database
from tests.boundaries import mark
from tests.examples import register_profiles
from tests.groups import GroupScheduling, arrange
from tests.postgresql import PostgreSQL, running_postgresql

register_profiles()
# Else trainings get only what all other tests leave, which beside other work is next to nothing.
os.environ.setdefault("TIDEMILL_TRAINING_NICENESS", "0")

ROOT = Path(__file__).parents[1]

OpenDatabase = Callable[[str], Engine]


_UMASK = os.umask(0o022)
os.umask(_UMASK)


@pytest.fixture(autouse=True)
def umask_as_before() -> Iterator[None]:
    """Undoes the umask of a supervisor that a test ran in its own process: later tests share files with other users."""
    yield
    os.umask(_UMASK)


@pytest.fixture(autouse=True, scope="session")
def nothing_beside_the_root() -> Iterator[None]:
    """A made-up path such as `/s` exists after a test that root ran wrote to it, and other users then fail there."""
    before = set(Path("/").iterdir())
    yield
    assert set(Path("/").iterdir()) <= before, "a test wrote to the root of the file system; give it tmp_path"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the longest groups first, and marks the tests of walls and operation."""
    arrange(items)
    mark(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GroupScheduling | None:
    """Our groups for `--dist loadgroup`."""
    return GroupScheduling(config, log) if config.getoption("dist") == "loadgroup" else None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--database`: `pytest --database postgresql tests/unit/pipeline` uses PostgreSQL instead of SQLite."""
    parser.addoption("--database", choices=("sqlite", "postgresql"), default="sqlite", help="of the stores under test")


def migrations(service: str) -> Path:
    """Alembic's folder of a service."""
    if service == "gateway":
        return ROOT / "gateway" / "keys" / "migrations"
    return ROOT / "services" / service / "adapters" / "migrations"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A running PostgreSQL."""
    with running_postgresql() as server:
        yield server


@pytest.fixture
def database_kind(request: pytest.FixtureRequest) -> str:
    """`sqlite` or `postgresql`."""
    return str(request.config.getoption("--database"))


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """An empty SQLite database of a service in its newest schema. To copy it takes a fraction of the migrations."""
    folder = tmp_path_factory.mktemp("migrated")

    @cache
    def of(service: str) -> Path:
        path = folder / f"{service}.sqlite"
        open_database(f"sqlite:///{path}", migrations(service)).dispose()
        return path

    return of


@pytest.fixture
def open_service_database(
    request: pytest.FixtureRequest, database_kind: str, tmp_path: Path, migrated_file: Callable[[str], Path]
) -> Iterator[OpenDatabase]:
    """Opens a service's database in its newest schema; on PostgreSQL all tests share one, with a schema each."""
    opened: list[Engine] = []
    url = request.getfixturevalue("postgresql").url() if database_kind == "postgresql" else ""
    mark = uuid.uuid4().hex[:12]

    def open_it(service: str) -> Engine:
        file = tmp_path / f"{service}.sqlite"
        if not url and not file.exists():
            shutil.copyfile(migrated_file(service), file)
        own = url or f"sqlite:///{file}"
        opened.append(open_database(own, migrations(service), schema=f"{service}-{mark}"))
        return opened[-1]

    yield open_it
    for engine in opened:
        engine.dispose()
