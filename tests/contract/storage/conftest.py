"""The same suite on SQLite and a real PostgreSQL; on a local folder and S3's protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kit.storage.artifacts import ArtifactStore
from tests.s3 import new_bucket, serving_s3

SERVICES = ("ingest", "cleaning", "training", "inference", "pipeline", "gateway")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """Both databases, whatever `--database` says."""
    return str(request.param)


@pytest.fixture(scope="package")
def s3() -> Iterator[str]:
    """A server that speaks S3; its URL."""
    with serving_s3() as url:
        yield url


@pytest.fixture(params=["folder", "s3"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """An empty artefact store."""
    if request.param == "folder":
        return ArtifactStore(f"file://{tmp_path}/artifacts")
    return ArtifactStore(f"{new_bucket(request.getfixturevalue('s3'), monkeypatch)}/tidemill")
