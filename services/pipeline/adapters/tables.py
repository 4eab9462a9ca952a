"""Tables of the pipeline service."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, MetaData, String, Table

from services.kit.storage.columns import FreeText, JsonText, UtcMicros
from services.kit.storage.requests import request_table

metadata = MetaData()

request_table(metadata)

cycles = Table(
    "cycles",
    metadata,
    Column("cycle_id", String(64), primary_key=True),
    Column("pipeline", String(64), nullable=False, index=True),
    # The pipeline's name while the cycle runs, then null: one cycle of a pipeline at a time.
    Column("at_work", String(64), nullable=True, unique=True),
    Column("state", String(16), nullable=False),
    Column("spec", JsonText, nullable=False),
    Column("body", JsonText, nullable=False),
    # Null if the caller gave none; several rows may be null.
    Column("request_id", String(128), nullable=True, unique=True),
    Column("traceparent", String(64), nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("announced", Boolean, nullable=False, index=True),
    Column("create_time", UtcMicros, nullable=False),
    Column("update_time", UtcMicros, nullable=False),
)

feedback = Table(
    "feedback",
    metadata,
    Column("feedback_id", String(64), primary_key=True),
    Column("answer", String(80), nullable=False, index=True),
    Column("rating", Float, nullable=False),
    Column("correction", FreeText, nullable=False),
    Column("author", String(256), nullable=False),
    Column("model_version", String(160), nullable=False),
    Column("request_id", String(128), nullable=True, unique=True),
    Column("traceparent", String(64), nullable=False),
    Column("announced", Boolean, nullable=False, index=True),
    Column("create_time", UtcMicros, nullable=False),
)

answers = Table(
    "answers",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("model_version", String(160), nullable=False),
    Column("answer_time", UtcMicros, nullable=False, index=True),
)
