"""Tables of the training service."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Integer, MetaData, String, Table, Text

from services.kit.storage.columns import JsonText, UtcMicros
from services.kit.storage.requests import request_table

metadata = MetaData()

request_table(metadata)

runs = Table(
    "runs",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("state", String(16), nullable=False, index=True),
    Column("recipe", JsonText, nullable=False),
    Column("digest", String(64), nullable=False, index=True),
    Column("uri", Text, nullable=False),
    Column("progress", JsonText, nullable=True),
    # Not JsonText, which would fail the whole query if one report is damaged.
    Column("report", Text, nullable=True),
    Column("failure", JsonText, nullable=True),
    Column("model_version", String(128), nullable=False),
    # Null if the caller gave none; several rows may be null.
    Column("request_id", String(128), nullable=True, unique=True),
    Column("traceparent", String(64), nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("announced", Boolean, nullable=False),
    Column("model_name", String(64), nullable=False, server_default="", index=True),
    # Of the runs of a model, the one that was promoted last is the champion.
    Column("promote_time", UtcMicros, nullable=True),
    Column("warnings", JsonText, nullable=False, server_default="[]"),
    # Step and loss of each point.
    Column("loss_curve", JsonText, nullable=False, server_default="[]"),
    Column("create_time", UtcMicros, nullable=False),
    Column("update_time", UtcMicros, nullable=False),
)
