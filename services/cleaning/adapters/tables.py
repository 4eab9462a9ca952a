"""Tables of the cleaning service. Times are microseconds since 1970 in UTC; JSON is text in canonical form."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, String, Table, Text, text

from services.kit.storage.database import FreeText

metadata = MetaData()

raw_records = Table(
    "raw_records",
    metadata,
    Column("record_id", String(128), primary_key=True),
    Column("source", String(64), nullable=False, index=True),
    Column("text", FreeText, nullable=False),
    Column("attributes", Text, nullable=False),
    Column("content_digest", String(64), nullable=False),
    Column("import_name", String(80), nullable=False),
)

import_records = Table(
    "import_records",
    metadata,
    Column("import_name", String(80), primary_key=True),
    Column("record_id", String(128), primary_key=True),
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("dataset", String(80), primary_key=True),
    Column("record_id", String(128), primary_key=True),
    Column("source", String(64), nullable=False),
    Column("recipe_digest", String(64), nullable=False),
    Column("content_digest", String(64), nullable=False),
    Column("text", FreeText, nullable=False),
    Column("attributes", Text, nullable=False),
    Column("reason", String(64), nullable=False),
    Column("detail", FreeText, nullable=False),
    Column("traceparent", String(64), nullable=False),
    Column("announced", Boolean, nullable=False),
)
# Few rows are unannounced at any time; the index holds those alone.
Index(
    "ix_verdicts_unannounced",
    verdicts.c.record_id,
    sqlite_where=text("announced = 0"),
    postgresql_where=text("announced = false"),
)
Index("ix_verdicts_record", verdicts.c.record_id)

datasets = Table(
    "datasets",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("spec", Text, nullable=False),
    Column("recipe_digest", String(64), nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
)

dataset_versions = Table(
    "dataset_versions",
    metadata,
    Column("dataset", String(80), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("request_id", String(128), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("spec", Text, nullable=False),
    Column("recipe_digest", String(64), nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    # Awaited imports, progress, snapshot and failure: read and written whole, never searched.
    Column("body", Text, nullable=False),
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
