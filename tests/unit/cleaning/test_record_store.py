"""What the record store asks of its database, five times a second, must not read all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import event, text

from services.cleaning.__main__ import MIGRATIONS
from services.cleaning.adapters.record_store import SqlRecordStore
from services.kit.storage.database import open_database


def test_looking_for_announcements_reads_the_unannounced_only(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/cleaning.sqlite", MIGRATIONS)
    asked: list[tuple[str, Any]] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    SqlRecordStore(engine).announcements(500)
    statement, parameters = asked[-1]
    with engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
        assert connection.execute(text("SELECT count(*) FROM verdicts")).scalar() == 0
    engine.dispose()
    assert any("ix_verdicts_unannounced" in row[3] for row in plan), plan
