"""Tables of the inference service."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Index, Integer, MetaData, String, Table, Text, text

from services.kit.storage.columns import JsonText, UtcMicros
from services.kit.storage.requests import request_table

metadata = MetaData()

request_table(metadata)

models = Table(
    "models",
    metadata,
    Column("name", String(64), primary_key=True),
    # The version that serves; null when none does.
    Column("serving", Integer, nullable=True),
    # The newest of its route's changes; 0 before the first one.
    Column("revision", Integer, nullable=False, server_default="0"),
    Column("create_time", UtcMicros, nullable=False),
    Column("update_time", UtcMicros, nullable=False),
)

# What each change made of a route. The newest one of a model is its route; those before it are kept until their event
# has been published.
route_changes = Table(
    "route_changes",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("revision", Integer, primary_key=True),
    # Entries and aliases: read and written whole, never searched.
    Column("content", JsonText, nullable=False),
    Column("change_time", UtcMicros, nullable=False),
    Column("traceparent", String(64), nullable=False),
    Column("announced", Boolean, nullable=False),
)
Index(
    "ix_route_changes_unannounced",
    route_changes.c.change_time,
    sqlite_where=text("announced = 0"),
    postgresql_where=text("announced = false"),
)

# Publications and roll-backs that were done, so that a late repeat of one does not undo what came after it. The table
# is named after the first of them that needed it.
done_requests = Table(
    "roll_backs",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("request_id", String(128), primary_key=True),
    Column("number", Integer, nullable=False),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("artifact_uri", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("run", String(128), nullable=False),
    Column("dataset_version", String(256), nullable=False),
    # The build's manifest: read and written whole, never searched.
    Column("build", JsonText, nullable=False),
    Column("message", Text, nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("traceparent", String(64), nullable=False),
    Column("create_time", UtcMicros, nullable=False),
    Column("update_time", UtcMicros, nullable=False),
    Column("serve_time", UtcMicros, nullable=True),
    Column("announced", Boolean, nullable=False),
    # The last verification of the version's files.
    Column("integrity", String(16), nullable=False, server_default=""),
    Column("verify_time", UtcMicros, nullable=True),
    Column("integrity_message", Text, nullable=False, server_default=""),
    # Counts the loads into Triton.
    Column("generation", Integer, nullable=False, server_default="0"),
)
# Few versions have a pending event at any time; the index contains only those.
Index(
    "ix_model_versions_unannounced",
    model_versions.c.model,
    sqlite_where=text("announced = 0"),
    postgresql_where=text("announced = false"),
)
