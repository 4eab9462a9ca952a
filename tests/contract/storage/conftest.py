"""The same suite on SQLite and a real PostgreSQL; on a local folder and S3's protocol."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy import Engine

from services.kit.storage.artifacts import ArtifactStore
from services.kit.storage.database import open_database
from tests.postgresql import PostgreSQL, running_postgresql

Opener = Callable[[str], Engine]

SERVICES = ("ingest", "cleaning", "training", "inference", "pipeline", "gateway")


def migrations(service: str) -> Path:
    """Alembic's folder of a service."""
    root = Path(__file__).parents[3]
    if service == "gateway":
        return root / "gateway" / "keys" / "migrations"
    return root / "services" / service / "adapters" / "migrations"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A running PostgreSQL."""
    with running_postgresql() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def open_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens a service's database, brought to its newest schema; on PostgreSQL all services share one."""
    opened: list[Engine] = []
    url = ""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql").create(f"test-{uuid.uuid4().hex}")

    def open_it(service: str) -> Engine:
        own = url or f"sqlite:///{tmp_path}/{service}.sqlite"
        opened.append(open_database(own, migrations(service), schema=service))
        return opened[-1]

    yield open_it
    for engine in opened:
        engine.dispose()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A server that speaks S3; its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """An empty artefact store."""
    if request.param == "folder":
        return ArtifactStore(f"file://{tmp_path}/artifacts")
    import s3fs

    # What an operator sets for an object store that is not Amazon's.
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"test-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(bucket)
    return ArtifactStore(f"s3://{bucket}/tidemill")
