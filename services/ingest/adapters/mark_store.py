"""What was decided about dead letters, in the service's database."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Engine, delete, func, insert, or_, select

from services.ingest.adapters.tables import dead_letter_marks
from services.ingest.domain.dead_letter import LetterState, Mark
from services.kit.storage.database import read_only, translate_database_errors

_ROWS = dead_letter_marks.c


class SqlMarkStore:
    """Implements `services.ingest.app.dead_letters.MarkStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def marks(self, log_id: str, begin: int, end: int) -> Mapping[int, Mark]:
        """See the port."""
        query = select(dead_letter_marks).where(
            _ROWS.log_id == log_id, _ROWS.letter_offset >= begin, _ROWS.letter_offset < end
        )
        with translate_database_errors(), self._reads.connect() as connection:
            rows = connection.execute(query).mappings()
            return {
                row["letter_offset"]: Mark(LetterState(row["state"]), row["actor"], row["decide_time"]) for row in rows
            }

    def mark(self, log_id: str, offset: int, mark: Mark) -> None:
        """See the port."""
        key = {"log_id": log_id, "letter_offset": offset}
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(delete(dead_letter_marks).filter_by(**key))
            row = {"state": mark.state.value, "actor": mark.actor, "decide_time": mark.decide_time}
            connection.execute(insert(dead_letter_marks).values({**key, **row}))

    def count(self, log_id: str, begin: int) -> int:
        """See the port."""
        query = (
            select(func.count())
            .select_from(dead_letter_marks)
            .where(_ROWS.log_id == log_id, _ROWS.letter_offset >= begin)
        )
        with translate_database_errors(), self._reads.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def forget(self, log_id: str, begin: int) -> None:
        """See the port."""
        gone = or_(_ROWS.log_id != log_id, _ROWS.letter_offset < begin)
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(delete(dead_letter_marks).where(gone))
