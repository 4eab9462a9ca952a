"""Tables of the ingest service."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, String, Table

from services.kit.storage.columns import FreeText, JsonText, UtcMicros
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

# What crawls know of each address: the crawl that listed it last and the one that is done with it, so that one
# continues where its process died, and what the last answer was, so that the next crawl need not be sent it again.
crawled_pages = Table(
    "crawled_pages",
    metadata,
    Column("origin", String(64), primary_key=True),
    # Of the address, which is too long for an index.
    Column("address_digest", String(64), primary_key=True),
    Column("address", FreeText, nullable=False),
    Column("listed_by", String(80), nullable=False),
    Column("done_by", String(80), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("depth", Integer, nullable=False),
    Column("hops", Integer, nullable=False),
    Column("is_sitemap", Boolean, nullable=False),
    Column("etag", String(1024), nullable=False),
    Column("last_modified", String(128), nullable=False),
    # Compressed JSON; empty where there is none.
    Column("content", LargeBinary, nullable=False),
    # JSON of a refusal by the crawl that is done with it.
    Column("refusal", JsonText),
)
Index("ix_crawled_pages_listed", crawled_pages.c.origin, crawled_pages.c.listed_by, crawled_pages.c.number)

# What the mesh collects by itself. A row that is deleted waits for its last import to end; then its state goes, too.
declared_sources = Table(
    "declared_sources",
    metadata,
    Column("source", String(64), primary_key=True),
    Column("spec", JsonText, nullable=False),
    Column("origin", String(64), nullable=False, index=True),
    Column("timetable", JsonText),
    Column("pipelines", JsonText, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("pause_reason", String(256), nullable=False),
    Column("create_time", UtcMicros, nullable=False),
    Column("update_time", UtcMicros, nullable=False),
    Column("due_time", UtcMicros, index=True),
    Column("deleted", Boolean, nullable=False),
)

# Orders to collect a source; `order_id` is the request id of the import that answers it.
source_collections = Table(
    "source_collections",
    metadata,
    Column("order_id", String(64), primary_key=True),
    Column("source", String(64), nullable=False),
    Column("spec", JsonText, nullable=False),
    Column("order_time", UtcMicros, nullable=False),
    Column("actor", String(160), nullable=False),
    Column("pending", Boolean, nullable=False, index=True),
    Column("import_name", String(80), nullable=False),
    Column("reused", Boolean, nullable=False),
    Column("failure", JsonText),
)
Index("ix_source_collections_source", source_collections.c.source, source_collections.c.order_time)

# The tenant whose key was the first to push to a source; the policy of a declared source goes before.
source_tenants = Table(
    "source_tenants",
    metadata,
    Column("source", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
)
