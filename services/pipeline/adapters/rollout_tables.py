"""Tables of roll-outs and of the audit trail."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, String, Table

from services.kit.storage.columns import FreeText, JsonText, UtcMicros
from services.pipeline.adapters.tables import metadata

rollouts = Table(
    "rollouts",
    metadata,
    Column("rollout_id", String(64), primary_key=True),
    Column("model", String(80), nullable=False, index=True),
    # The model's name while the roll-out is in a step, else null: one of a model at a time.
    Column("at_work", String(80), nullable=True, unique=True),
    Column("state", String(32), nullable=False),
    Column("applied", Boolean, nullable=False),
    # Counts the changes; who changes it names the one that it was made from.
    Column("revision", Integer, nullable=False),
    # Plan, steps and reasons: read and written whole, never searched.
    Column("body", JsonText, nullable=False),
    Column("create_time", UtcMicros, nullable=False),
    Column("update_time", UtcMicros, nullable=False),
)

# The calls of roll-outs at work, one row each, so that a repeated event counts once and feedback finds its arm.
rollout_calls = Table(
    "rollout_calls",
    metadata,
    Column("answer", String(80), primary_key=True),
    Column("rollout_id", String(64), nullable=False),
    # -1 for a call by a route that no step has set.
    Column("step", Integer, nullable=False),
    Column("candidate", Boolean, nullable=False),
    # The user's slot, or the answer of a call without a user.
    Column("unit", String(80), nullable=False),
    # Null where it was not answered.
    Column("latency_ms", Float, nullable=True),
    Column("label", String(256), nullable=False),
)
Index("ix_rollout_calls_step", rollout_calls.c.rollout_id, rollout_calls.c.step, rollout_calls.c.candidate)

rollout_counts = Table(
    "rollout_counts",
    metadata,
    Column("rollout_id", String(64), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("candidate", Boolean, primary_key=True),
    Column("calls", Integer, nullable=False),
    Column("errors", Integer, nullable=False),
    Column("refusals", Integer, nullable=False),
    # Count of answers by bucket of latency.
    Column("latencies", JsonText, nullable=False),
)

# Rows are added and never changed; a trigger refuses anything else.
audit_entries = Table(
    "audit_entries",
    metadata,
    Column("entry_id", String(64), primary_key=True),
    Column("create_time", UtcMicros, nullable=False),
    Column("actor", String(160), nullable=False),
    Column("action", String(64), nullable=False),
    Column("resource", String(256), nullable=False, index=True),
    Column("reason", FreeText, nullable=False),
    Column("facts", JsonText, nullable=False),
)

# Entries that people are still to be notified of.
unsent_entries = Table("unsent_entries", metadata, Column("entry_id", String(64), primary_key=True))
