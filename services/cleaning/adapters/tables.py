"""Tables of the cleaning service."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, String, Table, text

from services.kit.storage.columns import FreeText, JsonText, UtcMicros
from services.kit.storage.requests import request_table

metadata = MetaData()

request_table(metadata)


def _record_key() -> list[Column[str]]:
    return [Column("source", String(64), primary_key=True), Column("record_id", String(128), primary_key=True)]


def _original() -> list[Column[Any]]:
    """How the original of a record is kept. If a key is named, text and attributes are in `sealed`, see `Vault`."""
    return [
        Column("originals", String(16), nullable=False, server_default=text("'plain'")),
        Column("key_id", String(16), nullable=False, server_default=text("''")),
        Column("sealed", LargeBinary),
    ]


raw_records = Table(
    "raw_records",
    metadata,
    *_record_key(),
    Column("text", FreeText, nullable=False),
    Column("attributes", JsonText, nullable=False),
    Column("content_digest", String(64), nullable=False),
    Column("import_name", String(80), nullable=False),
    Column("event_time", BigInteger, nullable=False),
    Column("arrival", BigInteger, nullable=False),
    # Follows from the claims; stored here so that queries on records need no join.
    Column("withdrawn", Boolean, nullable=False),
    Column("tenant", String(64), nullable=False, server_default=text("''")),
    *_original(),
)
Index("ix_raw_records_id", raw_records.c.record_id)
Index("ix_raw_records_arrival", raw_records.c.source, raw_records.c.arrival)

# The latest statement of each origin about a record: held, or gone. The empty origin stands for pushes.
record_claims = Table(
    "record_claims",
    metadata,
    *_record_key(),
    Column("origin", String(64), primary_key=True),
    Column("arrival", BigInteger, nullable=False),
    Column("held", Boolean, nullable=False),
)

# An import has one source, so the record's id identifies the record.
import_records = Table(
    "import_records",
    metadata,
    Column("import_name", String(80), primary_key=True),
    Column("record_id", String(128), primary_key=True),
    Column("withdrawn", Boolean, nullable=False, server_default=text("false")),
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("dataset", String(80), primary_key=True),
    *_record_key(),
    Column("recipe_digest", String(64), nullable=False),
    Column("content_digest", String(64), nullable=False),
    Column("text", FreeText, nullable=False),
    Column("attributes", JsonText, nullable=False),
    Column("reason", String(64), nullable=False),
    Column("detail", FreeText, nullable=False),
    Column("operator", String(64), nullable=False, server_default=text("''")),
    Column("traceparent", String(64), nullable=False),
    Column("announced", Boolean, nullable=False),
    *_original(),
)
# A partial index: few rows are unannounced at any time.
Index(
    "ix_verdicts_unannounced",
    verdicts.c.record_id,
    sqlite_where=text("announced = 0"),
    postgresql_where=text("announced = false"),
)
Index("ix_verdicts_record", verdicts.c.source, verdicts.c.record_id)
# Which keys are in use is asked at each start.
for _table in (raw_records, verdicts):
    _encrypted = text("key_id <> ''")
    Index(f"ix_{_table.name}_key", _table.c.key_id, sqlite_where=_encrypted, postgresql_where=_encrypted)

datasets = Table(
    "datasets",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("spec", JsonText, nullable=False),
    Column("recipe_digest", String(64), nullable=False),
    Column("create_time", UtcMicros, nullable=False),
    Column("update_time", UtcMicros, nullable=False),
)

dataset_versions = Table(
    "dataset_versions",
    metadata,
    Column("dataset", String(80), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("request_id", String(128), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("spec", JsonText, nullable=False),
    Column("recipe_digest", String(64), nullable=False),
    Column("create_time", UtcMicros, nullable=False),
    Column("update_time", UtcMicros, nullable=False),
    # Awaited imports, progress, snapshot and failure: read and written as a whole, never queried.
    Column("body", JsonText, nullable=False),
    Column("reused", Boolean, nullable=False),
    Column("traceparent", String(64), nullable=False),
    Column("announced", Boolean, nullable=False),
)
Index(
    "ux_dataset_versions_request",
    dataset_versions.c.dataset,
    dataset_versions.c.request_id,
    unique=True,
    sqlite_where=text("request_id <> ''"),
    postgresql_where=text("request_id <> ''"),
)

# Requests that got a version which already existed.
version_requests = Table(
    "version_requests",
    metadata,
    Column("dataset", String(80), primary_key=True),
    Column("request_id", String(128), primary_key=True),
    Column("number", Integer, nullable=False),
)

# What models wrote for variants, while the newest version of the data set needs it: nothing is asked twice.
model_answers = Table(
    "model_answers",
    metadata,
    Column("dataset", String(80), primary_key=True),
    Column("question", String(64), primary_key=True),
    Column("source", String(64), nullable=False),
    Column("record_id", String(128), nullable=False),
    Column("text", FreeText, nullable=False),
    # Why it is not used, as a reason and in a sentence; empty if it is.
    Column("dropped", String(64), nullable=False),
    Column("detail", FreeText, nullable=False),
)
Index("ix_model_answers_record", model_answers.c.source, model_answers.c.record_id)

# Messages that the bus deleted before this service had read them.
lost_messages = Table(
    "lost_messages",
    metadata,
    Column("topic", String(249), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("first_offset", BigInteger, primary_key=True),
    Column("next_offset", BigInteger, nullable=False),
    Column("found_time", UtcMicros, nullable=False),
)
