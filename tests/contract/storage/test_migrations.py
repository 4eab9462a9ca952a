"""Databases of earlier releases are migrated to the newest schema without losing rows."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, event, text

from services.cleaning.adapters.record_store import SqlRecordStore
from services.cleaning.app.ports import Arrival
from services.cleaning.domain.dataset import DatasetSpec, ImportCount
from services.cleaning.domain.record import Cleaned, RawRecord, Rejection, Verdict
from services.inference.adapters.model_store import SqlModelStore
from services.inference.domain.route import RouteEntry
from services.kit.storage.database import open_database
from services.serving.domain.route import SLOTS, Role
from tests.conftest import migrations

OpenAt = Callable[[str, str], Engine]


@pytest.fixture
def open_at(
    request: pytest.FixtureRequest, database_kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OpenAt]:
    """Opens a service's database at a revision; the same one each time in a test."""
    mark, opened = uuid.uuid4().hex[:12], []
    url = request.getfixturevalue("postgresql").url() if database_kind == "postgresql" else ""

    def open_it(service: str, revision: str) -> Engine:
        upgrade = command.upgrade

        def to_revision(config: Config, _: str) -> None:
            upgrade(config, revision)

        with monkeypatch.context() as patch:
            patch.setattr(command, "upgrade", to_revision)
            own = url or f"sqlite:///{tmp_path}/{service}.sqlite"
            opened.append(open_database(own, migrations(service), schema=f"{service}-{mark}"))
        return opened[-1]

    yield open_it
    for engine in opened:
        engine.dispose()


def _fill(connection: Connection, table: str, *rows: dict[str, object]) -> None:
    for row in rows:
        values = ", ".join(f":{name}" for name in row)
        connection.execute(text(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values})"), row)


def test_records_of_a_store_whose_ids_were_global_keep_their_verdicts(open_at: OpenAt) -> None:
    kept = RawRecord("1", "news", "one", {"topic": "t"}, "imports/a")
    pushed = RawRecord("2", "mail", "two", {})
    old = open_at("cleaning", "0001")
    with old.begin() as connection:
        for record in (kept, pushed):
            attributes = '{"topic":"t"}' if record is kept else "{}"
            row = {"record_id": record.record_id, "source": record.source, "text": record.text}
            row |= {"attributes": attributes, "content_digest": record.content_digest}
            _fill(connection, "raw_records", {**row, "import_name": record.import_name})
        _fill(connection, "import_records", {"import_name": "imports/a", "record_id": "1"})
        verdict = {"recipe_digest": "0" * 64, "attributes": "{}", "detail": "chars=3", "traceparent": ""}
        verdict |= {"content_digest": kept.content_digest, "record_id": "1"}
        _fill(
            connection,
            "verdicts",
            {
                **verdict,
                "dataset": "datasets/news",
                "source": "news",
                "text": "",
                "reason": "short",
                "announced": False,
            },
            # A verdict on record 1 of mail, which record 1 of news had replaced.
            {**verdict, "dataset": "datasets/mail", "source": "mail", "text": "x", "reason": "", "announced": True},
        )
    engine = open_at("cleaning", "head")
    store = SqlRecordStore(engine)
    (one,) = store.records("1", "", 9)
    assert (one.record, one.withdrawn) == (kept, False)
    cleaned = Cleaned("", {}, Rejection("short", "chars=3"))
    assert one.verdicts == [Verdict("1", "news", "datasets/news", "0" * 64, kept.content_digest, cleaned)]
    assert [item.verdict for item in store.announcements(9)] == one.verdicts
    assert store.import_counts(["imports/a"]) == {"imports/a": ImportCount(1)}
    # An arriving record is newer than the stored one, and does not replace a record of another source.
    store.collect([Arrival(RawRecord("1", "mail", "back", {}, "imports/b", 5, 5, "file"))], [], [])
    store.collect([Arrival(RawRecord("2", "mail", "newer", {}, "", 5, 6))], [], [])
    rows = store.with_verdicts("datasets/x", DatasetSpec(("mail", "news")))
    assert {(r.source, r.record_id): r.text for r, _ in rows} == {
        ("news", "1"): "one",
        ("mail", "1"): "back",
        ("mail", "2"): "newer",
    }


def test_an_upgrade_that_is_broken_off_leaves_the_old_store(open_at: OpenAt) -> None:
    old = open_at("cleaning", "0001")
    row = {"record_id": "1", "source": "news", "text": "one", "attributes": "{}", "content_digest": "d"}
    with old.begin() as connection:
        _fill(connection, "raw_records", {**row, "import_name": ""})

    def fail(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "lost_messages" in statement:
            raise KeyboardInterrupt

    event.listen(Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(KeyboardInterrupt):
            open_at("cleaning", "head")
    finally:
        event.remove(Engine, "before_cursor_execute", fail)
    with old.connect() as connection:
        assert connection.execute(text("SELECT record_id, import_name FROM raw_records")).all() == [("1", "")]
    (kept,) = SqlRecordStore(open_at("cleaning", "head")).records("1", "news", 9)
    assert kept.record.text == "one"


def test_a_model_of_one_version_gets_a_route_with_it(open_at: OpenAt) -> None:
    old = open_at("inference", "0004")
    times = {"create_time": 1, "update_time": 2}
    version: dict[str, object] = {
        "artifact_uri": "file:///b",
        "digest": "d",
        "run": "",
        "dataset_version": "",
        "message": "",
    }
    version |= {"build": '{"task":"generation","precision":"int8","labels":[]}', "request_id": "", "traceparent": ""}
    version |= {**times, "serve_time": 3, "announced": True}
    with old.begin() as connection:
        _fill(connection, "models", {"name": "m", "serving": 2, "generation": 7, **times})
        _fill(connection, "models", {"name": "unserved", "serving": None, "generation": 3, **times})
        for number, state in ((1, "retired"), (2, "serving")):
            _fill(connection, "model_versions", {"model": "m", "number": number, "state": state, **version})
    store = SqlModelStore(open_at("inference", "head"))
    found = store.model("m")
    assert found is not None
    assert found.route.entries == (RouteEntry(2, Role.SERVING, 100, ((0, SLOTS),)),)
    assert [(each.number, each.generation) for each in store.routed(found.route)] == [(2, 7)]
    assert store.unannounced_routes() == []
    changed = store.set_route(found.route.served_by(1), datetime(2026, 1, 1, tzinfo=UTC))
    assert (changed.etag, changed.numbers) == ("2", frozenset({1}))
    unserved = store.model("unserved")
    assert unserved is not None
    assert (unserved.serving, unserved.route.entries) == (None, ())
