"""Messages that the bus deleted unread, in the service's database."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Engine, func, select

from services.cleaning.adapters.record_store import upsert_statement
from services.cleaning.adapters.tables import lost_messages
from services.cleaning.app.ports import Losses
from services.kit.bus.port import LostMessages
from services.kit.storage.database import read_only, translate_database_errors


class SqlLossStore:
    """Implements `services.cleaning.app.ports.LossStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def note_lost(self, lost: LostMessages, moment: datetime) -> None:
        """See the port."""
        row = {
            "topic": lost.topic,
            "partition": lost.partition,
            "first_offset": lost.first_offset,
            "next_offset": lost.next_offset,
            "found_time": moment,
        }
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(upsert_statement(connection.dialect.name, lost_messages, ["next_offset"]), [row])

    def losses(self) -> Losses | None:
        """See the port."""
        count = func.sum(lost_messages.c.next_offset - lost_messages.c.first_offset)
        query = select(count, func.max(lost_messages.c.found_time))
        with translate_database_errors(), self._reads.connect() as connection:
            messages, found = connection.execute(query).one()
        return Losses(int(messages), found) if found is not None else None
