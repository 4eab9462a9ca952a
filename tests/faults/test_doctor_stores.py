"""`tidemill doctor` looks at a PostgreSQL server and at a bucket as it does at files."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url

from infra.stack.doctor.findings import Level
from infra.stack.doctor.stores import Stores
from infra.stack.layout import Layout
from infra.stack.process import start_ticks
from infra.stack.state import StackPhase, StackState, write_state
from services.cleaning.adapters.record_store import SqlRecordStore, keys_in_use
from services.cleaning.adapters.vault import open_vault
from services.cleaning.app.ports import Arrival
from services.cleaning.domain.record import Keeping, RawRecord
from services.kit.ids import new_id
from services.kit.storage.artifacts import ArtifactStore, digest_folder
from services.kit.storage.database import open_database
from services.kit.storage.signing import SigningKey
from tests.conftest import migrations
from tests.faults.test_doctor import look, one
from tests.postgresql import PostgreSQL
from tests.s3 import new_bucket, serving_s3


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    return Layout.of(tmp_path / "home", state)


@pytest.fixture
def database(postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty database, which the mesh's environment names."""
    url = postgresql.create(f"doctor-{new_id()}")
    monkeypatch.setenv("TIDEMILL_DATABASE_URL", url)
    return url


@pytest.fixture
def owner(database: str) -> Iterator[Engine]:
    """The database as its superuser sees it."""
    engine = create_engine(make_url(database).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    with serving_s3() as server:
        yield server


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket, which the mesh's environment names."""
    url = f"{new_bucket(s3_server, monkeypatch)}/mesh"
    monkeypatch.setenv("TIDEMILL_ARTIFACTS_URL", url)
    return url


def start(url: str, *services: str) -> None:
    """Makes the schemas of services, as their start does."""
    for service in services:
        open_database(url, migrations(service), schema=service).dispose()


def run(engine: Engine, *statements: str) -> None:
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


def test_every_service_with_a_database_is_looked_at(layout: Layout) -> None:
    assert {each.service for each in Stores.of(layout).databases} == {
        "ingest",
        "cleaning",
        "training",
        "inference",
        "pipeline",
        "gateway",
    }


def test_the_stores_of_the_mesh_that_runs_are_looked_at(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks may have another environment than who started the mesh."""
    url, bucket = "postgresql://mesh@host/mesh", "s3://bucket/mesh"
    environment = {**os.environ, "TIDEMILL_DATABASE_URL": url, "TIDEMILL_ARTIFACTS_URL": bucket}
    supervisor = subprocess.Popen(
        [sys.executable, "-c", "input()"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        ticks = start_ticks(supervisor.pid)
        running = StackState(StackPhase.READY, layout.home.root, layout.state.root, supervisor.pid, ticks)
        write_state(layout.state.file, running)
        monkeypatch.setenv("TIDEMILL_MLFLOW_URI", "http://another-mesh")
        found = Stores.of(layout)
    finally:
        supervisor.communicate(b"\n")
    assert (found.database_url, found.artifacts) == (url, bucket)
    assert found.mlflow == f"sqlite:///{layout.state.mlflow}"


def test_a_new_and_a_used_database_are_well(layout: Layout, database: str) -> None:
    assert look(layout, "databases") == []
    start(database, "ingest", "gateway")
    assert look(layout, "databases") == []
    assert look(layout, "originals") == []


def test_a_server_that_does_not_answer_is_a_fault(
    layout: Layout, postgresql: PostgreSQL, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = make_url(database).set(username="nobody", password="s3cret", database="missing")
    monkeypatch.setenv("TIDEMILL_DATABASE_URL", secret.render_as_string(hide_password=False))
    missing = one(layout, "databases")
    assert (missing.level, missing.reason) == (Level.FAULT, "DATABASE_UNAVAILABLE")
    assert "does not exist" in missing.message
    assert "s3cret" not in missing.message
    postgresql.stop()
    try:
        away = one(layout, "databases")
        (unknown,) = look(layout, "originals")
    finally:
        postgresql.start()
    assert (away.level, away.reason) == (Level.FAULT, "DATABASE_UNAVAILABLE")
    assert "Start the server" in away.remedy
    assert "\n" not in away.message
    assert "This could not be checked" in unknown.message


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("not a url", "not a valid database URL"),
        ("postgresql+nodriver://host/x", "not installed"),
        ("sqlite:////one/file.sqlite", "cannot share"),
    ],
)
def test_a_url_that_no_mesh_can_use_is_a_fault(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.setenv("TIDEMILL_DATABASE_URL", url)
    assert said in one(layout, "databases").message


def test_schemas_of_other_releases_are_found(layout: Layout, database: str, owner: Engine) -> None:
    start(database, "ingest", "pipeline")
    run(owner, "UPDATE ingest.alembic_version SET version_num = '0001'")
    older = one(layout, "databases")
    assert older.level is Level.NOTICE
    assert "the schema ingest of postgresql" in older.message
    assert "has the revision 0001; this release expects" in older.message
    assert "pg_dump" in older.remedy
    run(owner, "UPDATE ingest.alembic_version SET version_num = '9999'")
    newer = one(layout, "databases")
    assert newer.level is Level.FAULT
    assert "9999, which this release does not know" in newer.message
    assert "backup" in newer.remedy


def test_files_of_other_releases_are_found(layout: Layout) -> None:
    file = layout.state.databases / "training.sqlite"
    engine = open_database(f"sqlite:///{file}", migrations("training"))
    assert look(layout, "databases") == []
    for revision, level in (("0001", Level.NOTICE), ("9999", Level.FAULT)):
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
        found = one(layout, "databases")
        assert (found.level, revision in found.message, str(file) in found.message) == (level, True, True)
    engine.dispose()


def test_a_server_that_takes_no_writes_is_a_fault(layout: Layout, database: str, owner: Engine) -> None:
    run(owner, f'ALTER DATABASE "{make_url(database).database}" SET default_transaction_read_only = on')
    assert "accepts no writes" in one(layout, "databases").message


def test_a_user_without_rights_is_a_fault(
    layout: Layout, database: str, owner: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(database, "ingest")
    reader = f"reader_{new_id()}"
    run(owner, f'CREATE USER "{reader}"')
    monkeypatch.setenv("TIDEMILL_DATABASE_URL", str(make_url(database).set(username=reader)))
    found = look(layout, "databases")
    assert all(each.level is Level.FAULT and "may not" in each.message for each in found)
    assert "may not write to the schema ingest" in found[0].message
    assert "may not create the schema cleaning" in found[1].message
    run(owner, f'GRANT ALL ON SCHEMA ingest TO "{reader}"')
    assert "may not write to the schema ingest" in look(layout, "databases")[0].message, "its tables are another's"


def test_an_index_that_is_not_valid_is_built_again(layout: Layout, database: str, owner: Engine) -> None:
    start(database, "ingest")
    run(owner, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ingest.ix_imports_origin'::regclass")
    found = one(layout, "databases")
    assert (found.level, found.reason) == (Level.FAULT, "DATABASE_DAMAGED")
    assert "ingest.ix_imports_origin" in found.message
    assert one(layout, "databases", repair=True).repaired
    assert look(layout, "databases") == []


def test_a_missing_key_of_originals_is_a_fault(layout: Layout, database: str) -> None:
    engine = open_database(database, migrations("cleaning"), schema="cleaning")
    record = RawRecord("r", "s", "text", {}, keeping=Keeping.ENCRYPTED)
    SqlRecordStore(engine, open_vault(layout.state.originals_key, [])).collect([Arrival(record)], [], [])
    (key,) = keys_in_use(engine)
    engine.dispose()
    assert look(layout, "originals") == []
    layout.state.originals_key.unlink()
    found = one(layout, "originals")
    assert f"lacks the key {key}, with which 1 rows of the schema cleaning" in found.message


def test_a_registry_elsewhere_is_asked(layout: Layout, monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        for well in (url, database):
            monkeypatch.setenv("TIDEMILL_MLFLOW_URI", well)
            assert look(layout, "registry") == []
        monkeypatch.setenv("TIDEMILL_MLFLOW_URI", f"{url}/elsewhere")
        assert "answers 404" in one(layout, "registry").message
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    for away in (url, str(make_url(database).set(database="missing"))):
        monkeypatch.setenv("TIDEMILL_MLFLOW_URI", away)
        assert one(layout, "registry").reason == "REGISTRY_FAILED"


def test_a_bucket_that_can_be_used_is_well_and_left_as_it_was(layout: Layout, bucket: str) -> None:
    for name in ("artefacts", "snapshots", "builds"):
        assert look(layout, name) == []
    assert fsspec.core.url_to_fs(bucket)[0].find(bucket) == []


def test_a_bucket_that_is_missing_or_away_is_a_fault(
    layout: Layout, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMILL_ARTIFACTS_URL", "s3://no-such-bucket-of-ours/mesh")
    missing = one(layout, "artefacts")
    assert missing.level is Level.FAULT
    assert "The bucket of s3://no-such-bucket-of-ours/mesh does not exist" in missing.message
    monkeypatch.setenv("TIDEMILL_ARTIFACTS_URL", "gopher://x/y")
    assert "Correct TIDEMILL_ARTIFACTS_URL" in one(layout, "artefacts").remedy


def test_damage_in_a_bucket_is_found(layout: Layout, bucket: str, tmp_path: Path) -> None:
    store, snapshot, build = ArtifactStore(bucket), tmp_path / "snapshot", tmp_path / "build"
    snapshot.mkdir()
    build.mkdir()
    (snapshot / "train.parquet").write_bytes(b"train")
    files = {"train.parquet": {"sha256": hashlib.sha256(b"train").hexdigest()}}
    (snapshot / "manifest.json").write_text(json.dumps({"files": files}))
    (build / "model.onnx").write_bytes(b"weights")
    (build / "tidemill.json").write_text(json.dumps({"digest": digest_folder(build)}))
    key = SigningKey(layout.state.model_keys / "signing.pem", layout.state.model_keys / "trusted")
    key.ensure()
    key.sign(build)
    kept, built = store.uri("datasets", "reviews", "abc"), store.uri("runs", "r1", "builds", "int8")
    store.put_folder(snapshot, kept)
    store.put_folder(build, built)
    assert [look(layout, name) for name in ("snapshots", "builds")] == [[], []]
    filesystem, _ = fsspec.core.url_to_fs(bucket)
    filesystem.pipe_file(f"{kept}/train.parquet", b"trai")
    filesystem.pipe_file(f"{built}/model.onnx", b"weight")
    damaged = one(layout, "snapshots")
    assert damaged.message == f"{kept} is damaged: train.parquet is not what was written."
    assert damaged.reason == "SNAPSHOT_DAMAGED"
    broken = one(layout, "builds")
    assert built in broken.message
    assert "model.onnx is damaged" in broken.message
    filesystem.rm_file(f"{kept}/train.parquet")
    assert "it is missing" in one(layout, "snapshots").message
