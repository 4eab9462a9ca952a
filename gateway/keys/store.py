"""Keeps API keys in the gateway's database; used by the gateway and, on the same machine, by `tidemill keys`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Column, DateTime, Engine, MetaData, String, Table, insert, select, update

from gateway.keys.key import ApiKey, digest_key, generate_key, id_of
from services.kit.clock import Clock, SystemClock
from services.kit.errors import NotFoundError
from services.kit.storage.database import open_database, read_only

metadata = MetaData()
_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String(12), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("revoke_time", DateTime(timezone=True), nullable=True),
)

KEY_FILE = "api-key"
_MIGRATIONS = Path(__file__).parent / "migrations"


def _aware(moment: datetime | None) -> datetime | None:
    # SQLite gives times back without their zone.
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


class KeyStore:
    """The table of keys."""

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        self._engine, self._reads = engine, read_only(engine)
        self._clock = clock or SystemClock()

    @classmethod
    def open(cls, database_url: str) -> KeyStore:
        """Opens the gateway's database and brings it to its newest schema."""
        return cls(open_database(database_url, _MIGRATIONS, schema="gateway"))

    def close(self) -> None:
        """Gives the connections back."""
        self._engine.dispose()

    def create(self, name: str) -> tuple[ApiKey, str]:
        """Makes a key.

        Returns:
            The key as it is kept, and its text, which nobody can read again.
        """
        key_id, text = generate_key()
        key = ApiKey(key_id, name, digest_key(text), self._clock.now())
        with self._engine.begin() as connection:
            connection.execute(
                insert(_keys).values(key_id=key_id, name=name, digest=key.digest, create_time=key.create_time)
            )
        return key, text

    def list(self) -> Sequence[ApiKey]:
        """All keys, oldest first, also the revoked ones."""
        with self._reads.connect() as connection:
            rows = connection.execute(select(_keys).order_by(_keys.c.create_time, _keys.c.key_id)).all()
        return [
            ApiKey(
                row.key_id, row.name, row.digest, _aware(row.create_time) or row.create_time, _aware(row.revoke_time)
            )
            for row in rows
        ]

    def revoke(self, key_id: str) -> ApiKey:
        """Ends a key's validity; a key that was revoked before keeps its time.

        Raises:
            NotFoundError: there is no such key.
        """
        with self._engine.begin() as connection:
            connection.execute(
                update(_keys)
                .where(_keys.c.key_id == key_id, _keys.c.revoke_time.is_(None))
                .values(revoke_time=self._clock.now())
            )
        found = next((key for key in self.list() if key.key_id == key_id), None)
        if found is None:
            raise NotFoundError(f"There is no API key {key_id}; `tidemill keys list` shows them.")
        return found

    def ensure_local_key(self, state: Path) -> Path:
        """Makes sure that this machine's user has a key: one is written to `<state>/api-key` (mode 0600) if need be.

        A file that holds a revoked key stays as it is: revoking means revoked.
        """
        path = state / KEY_FILE
        if path.is_file():
            known = {key.key_id for key in self.list()}
            if id_of(path.read_text(encoding="utf-8").strip()) in known:
                return path
        _, text = self.create("local")
        state.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        partial.replace(path)
        return path
