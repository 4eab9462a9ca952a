"""Tables of the training service. Times are microseconds since 1970 in UTC; JSON is text."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Integer, MetaData, String, Table, Text

from services.kit.storage.requests import request_table

metadata = MetaData()

request_table(metadata)

runs = Table(
    "runs",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("state", String(16), nullable=False, index=True),
    Column("recipe", Text, nullable=False),
    Column("digest", String(64), nullable=False, index=True),
    Column("uri", Text, nullable=False),
    Column("progress", Text, nullable=True),
    Column("report", Text, nullable=True),
    Column("failure", Text, nullable=True),
    Column("model_version", String(128), nullable=False),
    # Null where the caller gave none, so that many may lack one.
    Column("request_id", String(128), nullable=True, unique=True),
    Column("traceparent", String(64), nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("announced", Boolean, nullable=False),
    Column("warnings", Text, nullable=False, server_default="[]"),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
)
