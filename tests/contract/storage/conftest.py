"""The same suite on SQLite and a real PostgreSQL; on a local folder and S3's protocol."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from services.kit.storage.artifacts import ArtifactStore

SERVICES = ("ingest", "cleaning", "training", "inference", "pipeline", "gateway")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """Both databases, whatever `--database` says."""
    return str(request.param)


@pytest.fixture(scope="package")
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
