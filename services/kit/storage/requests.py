"""Responses to requests that carried a `request_id`, in the service's database."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import BigInteger, Column, Engine, LargeBinary, MetaData, String, Table, delete, insert, select
from sqlalchemy.exc import IntegrityError

from services.kit.clock import Clock
from services.kit.errors import AbortedError
from services.kit.grpc.request_ids import RecordedResponse
from services.kit.storage.database import read_only, translate_database_errors

# Longer than any caller repeats a request: the pipeline's cycles last for hours.
_RETENTION = timedelta(days=7)


def request_table(metadata: MetaData) -> Table:
    """The table for a service's log. Migrations create it from this: another shape needs another name.

    A row is a `RecordedResponse`; the name is that of an earlier release.
    """
    return Table(
        "answered_requests",
        metadata,
        Column("request_id", String(128), primary_key=True),
        Column("digest", String(64), nullable=False),
        Column("response", LargeBinary, nullable=False),
        # Seconds since 1970.
        Column("answer_time", BigInteger, nullable=False, index=True),
    )


class SqlRequestLog:
    """Implements `services.kit.grpc.request_ids.RequestLog`; what is older than a week is forgotten."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._reads, self._clock = engine, read_only(engine), clock
        self._table = request_table(MetaData())

    def find(self, request_id: str) -> RecordedResponse | None:
        """See the port."""
        table = self._table
        query = select(table.c.digest, table.c.response).where(table.c.request_id == request_id)
        with translate_database_errors(), self._reads.connect() as connection:
            row = connection.execute(query).first()
        return RecordedResponse(row.digest, row.response) if row is not None else None

    def keep(self, request_id: str, recorded: RecordedResponse) -> None:
        """See the port."""
        table, now = self._table, self._clock.now()
        row = {"request_id": request_id, "digest": recorded.digest, "response": recorded.response}
        old = (now - _RETENTION).timestamp()
        try:
            with translate_database_errors(), self._engine.begin() as connection:
                connection.execute(delete(table).where(table.c.answer_time < int(old)))
                connection.execute(insert(table).values(**row, answer_time=int(now.timestamp())))
        except IntegrityError as error:
            raise AbortedError(
                f"The request {request_id!r} was answered for another caller at the same time; repeat it.",
                retry_after_s=0.2,
            ) from error
