"""Tables of the ingest service."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, MetaData, String, Table

from services.kit.storage.columns import JsonText, UtcMicros
from services.kit.storage.requests import request_table

metadata = MetaData()

request_table(metadata)

imports = Table(
    "imports",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("state", String(16), nullable=False, index=True),
    Column("spec", JsonText, nullable=False),
    Column("spec_digest", String(64), nullable=False),
    Column("source_digest", String(64), nullable=False),
    Column("create_time", UtcMicros, nullable=False),
    Column("update_time", UtcMicros, nullable=False),
    Column("record_count", BigInteger, nullable=False),
    Column("rejected_count", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    # Progress and failure: read and written as a whole, never searched.
    Column("body", JsonText, nullable=False),
    Column("traceparent", String(64), nullable=False),
    Column("announced", Boolean, nullable=False),
    Column("origin", String(64), nullable=False, server_default=""),
    # Who pulls it: of two pulls of the same import, the one that began last continues.
    Column("generation", String(32), nullable=False, server_default=""),
)
Index("ix_imports_origin", imports.c.origin, imports.c.name)

pulled_records = Table(
    "pulled_records",
    metadata,
    Column("origin", String(64), primary_key=True),
    Column("record_id", String(128), primary_key=True),
    Column("content_digest", String(64), nullable=False),
    Column("seen_digest", String(64), nullable=False),
    Column("seen_by", String(32), nullable=False),
)

import_requests = Table(
    "import_requests",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("spec_digest", String(64), nullable=False),
    Column("import_name", String(80), nullable=False),
    Column("reused", Boolean, nullable=False),
)

# Moments at which cleaning found that raw records were deleted unread.
record_losses = Table("record_losses", metadata, Column("find_time", UtcMicros, primary_key=True, autoincrement=False))

batches = Table(
    "batches",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("accept_time", UtcMicros, nullable=False, index=True),
)

# What was decided about dead letters; `log_id` is the topic's, since offsets begin at 0 in one that was made again.
dead_letter_marks = Table(
    "dead_letter_marks",
    metadata,
    Column("log_id", String(64), primary_key=True),
    Column("letter_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("actor", String(160), nullable=False),
    Column("decide_time", UtcMicros, nullable=False),
)

# Where the last successful import of an incremental source ended.
source_positions = Table(
    "source_positions",
    metadata,
    Column("origin", String(64), primary_key=True),
    Column("position", JsonText, nullable=False),
)
