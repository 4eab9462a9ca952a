"""The distinct records of an import, in a temporary SQLite file: apart from its page cache it uses disk, not memory."""

from __future__ import annotations

import hashlib
import sqlite3

from services.ingest.domain.record import RawRecord


class TemporaryLedger:
    """Implements `services.ingest.app.ports.Ledger`. For one thread; its content ends with the process."""

    def __init__(self) -> None:
        # The empty name means a database on disk that SQLite deletes when it is closed.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID")
        self._database.execute("BEGIN")
        self._count = 0

    @property
    def count(self) -> int:
        """See the port."""
        return self._count

    def add(self, record: RawRecord) -> bool:
        """See the port."""
        key, content = record.record_id, record.content_digest
        known = self._database.execute("SELECT content FROM seen WHERE id = ?", (key,)).fetchone()
        if known is None:
            self._database.execute("INSERT INTO seen VALUES (?, ?)", (key, content))
            self._count += 1
        elif known[0] != content:
            self._database.execute("UPDATE seen SET content = ? WHERE id = ?", (content, key))
        else:
            return False
        return True

    def digest(self) -> str:
        """See the port: over `id NUL content-digest LF` of each record, in order of the ids' code points."""
        total = hashlib.sha256()
        for key, content in self._database.execute("SELECT id, content FROM seen ORDER BY id"):
            total.update(f"{key}\0{content}\n".encode())
        return total.hexdigest()

    def close(self) -> None:
        """See the port."""
        self._database.close()
