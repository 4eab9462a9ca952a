"""Tables of the pipeline service."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, MetaData, String, Table

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
    Column("label", String(256), nullable=False),
    Column("comment", FreeText, nullable=False),
    Column("episode", String(128), nullable=False),
    Column("signal", String(16), nullable=False),
    Column("tenant", String(128), nullable=False),
    Column("api_key", String(128), nullable=False),
    Index("ix_feedback_version_time", "model_version", "create_time"),
)

answers = Table(
    "answers",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("model_version", String(160), nullable=False),
    Column("answer_time", UtcMicros, nullable=False, index=True),
)

capture_policies = Table(
    "capture_policies",
    metadata,
    Column("model", String(80), primary_key=True),
    Column("pipeline", String(64), nullable=False),
    Column("capture", JsonText, nullable=False),
    Column("update_time", UtcMicros, nullable=False),
)

captured_answers = Table(
    "captured_answers",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("model", String(80), nullable=False, index=True),
    Column("model_version", String(160), nullable=False),
    Column("method", String(16), nullable=False),
    Column("prompt", FreeText, nullable=False),
    Column("text", FreeText, nullable=False),
    Column("answer_time", UtcMicros, nullable=False),
    Column("conversation", Boolean, nullable=False),
    Column("label", String(256), nullable=False),
    Column("score", Float, nullable=False),
    Column("tenant", String(128), nullable=False),
    Column("role", String(32), nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("latency_ms", Float, nullable=False),
    Column("expire_time", UtcMicros, nullable=False, index=True),
    Column("asked_by", String(40), nullable=False, server_default="", index=True),
    Index("ix_captured_answers_model_time", "model", "answer_time"),
    Index("ix_captured_answers_version_time", "model_version", "answer_time"),
)

# What feedback teaches. It stays when its answer expires: data sets are made from it.
lessons = Table(
    "lessons",
    metadata,
    Column("answer", String(80), primary_key=True),
    Column("model", String(80), nullable=False, index=True),
    Column("model_version", String(160), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("prompt", FreeText, nullable=False),
    Column("given", FreeText, nullable=False),
    Column("target", FreeText, nullable=False),
    Column("classification", Boolean, nullable=False),
    Column("person", String(32), nullable=False),
    Column("api_key", String(128), nullable=False),
    Column("feedback", String(80), nullable=False),
    Column("time", UtcMicros, nullable=False),
)

triggers = Table(
    "triggers",
    metadata,
    Column("pipeline", String(64), primary_key=True),
    Column("spec", JsonText, nullable=False),
    Column("scheduled_until", UtcMicros, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("pause_reason", FreeText, nullable=False),
    Column("met_since", UtcMicros, nullable=True),
    Column("cursors", JsonText, nullable=False),
)

# An order to start a cycle; `cycle` is empty until it is known to exist.
trigger_firings = Table(
    "trigger_firings",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("pipeline", String(64), nullable=False, index=True),
    Column("fire_time", UtcMicros, nullable=False),
    Column("reasons", JsonText, nullable=False),
    Column("spec", JsonText, nullable=False),
    Column("cycle", String(160), nullable=False, index=True),
    Column("error", FreeText, nullable=False),
)

# The newest look at each signal of a pipeline; it holds no text.
drift_looks = Table(
    "drift_looks",
    metadata,
    Column("pipeline", String(64), primary_key=True),
    Column("signal", String(16), primary_key=True),
    Column("look_time", UtcMicros, nullable=False),
    Column("since", UtcMicros, nullable=False),
    Column("reference", String(160), nullable=False),
    Column("key", String(160), nullable=False),
    Column("unit", String(16), nullable=False),
    Column("p_value", Float, nullable=False),
    Column("level", Float, nullable=False),
    Column("before", Float, nullable=False),
    Column("now", Float, nullable=False),
    Column("reference_count", Integer, nullable=False),
    Column("live_count", Integer, nullable=False),
)

# What Alertmanager last reported of each alert that a trigger names.
alerts = Table(
    "alerts",
    metadata,
    Column("pipeline", String(64), primary_key=True),
    Column("fingerprint", String(64), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("start_time", UtcMicros, nullable=False),
    Column("report_time", UtcMicros, nullable=False),
    Column("summary", FreeText, nullable=False),
    Column("resolved", Boolean, nullable=False),
)

# Answers to review. Those whose captured answer has expired are in it no more.
review_items = Table(
    "review_items",
    metadata,
    Column("answer", String(80), primary_key=True),
    Column("model", String(80), nullable=False, index=True),
    Column("need", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("wanted", Integer, nullable=False),
    # Decisions but skips.
    Column("done", Integer, nullable=False),
    Column("reviewer", String(256), nullable=False),
    Column("lease_end", UtcMicros, nullable=True),
    Column("lease_minutes", Float, nullable=False),
)

# One of a person and answer.
review_decisions = Table(
    "review_decisions",
    metadata,
    Column("answer", String(80), primary_key=True),
    Column("reviewer", String(256), primary_key=True),
    Column("action", String(16), nullable=False),
    Column("target", FreeText, nullable=False),
    Column("comment", FreeText, nullable=False),
    Column("time", UtcMicros, nullable=False),
    Column("feedback", String(80), nullable=False),
)

# What judges say of captured answers, apart from people's feedback. They go with the answers.
judge_ratings = Table(
    "judge_ratings",
    metadata,
    Column("answer", String(80), primary_key=True),
    Column("judge", String(64), primary_key=True),
    Column("model", String(80), nullable=False),
    # What the judge rated by: another prompt is another judge. Empty while pending.
    Column("version", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("rating", Float, nullable=False),
    Column("reason", FreeText, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("create_time", UtcMicros, nullable=False),
    # When it is tried next.
    Column("due_time", UtcMicros, nullable=False),
    Column("rate_time", UtcMicros, nullable=True),
    Index("ix_judge_ratings_work", "model", "judge", "state", "due_time"),
)

# What each judge cost on a day (UTC, ISO 8601). A call is counted before it is made.
judge_usage = Table(
    "judge_usage",
    metadata,
    Column("model", String(80), primary_key=True),
    Column("judge", String(64), primary_key=True),
    Column("day", String(10), primary_key=True),
    Column("calls", Integer, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("over_limit", Integer, nullable=False),
)

# The newest verdict on each judge that is in the audit trail.
judge_checks = Table(
    "judge_checks",
    metadata,
    Column("model", String(80), primary_key=True),
    Column("judge", String(64), primary_key=True),
    Column("version", String(16), nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("check_time", UtcMicros, nullable=False),
)

exclusions = Table(
    "exclusions",
    metadata,
    Column("exclusion_id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("create_time", UtcMicros, nullable=False),
    Column("api_key", String(128), nullable=False),
    Column("person", String(32), nullable=False),
    Column("reason", FreeText, nullable=False),
    Column("removed", JsonText, nullable=False),
    Column("ordered", JsonText, nullable=False),
    Column("lift_time", UtcMicros, nullable=True),
    Column("rewritten", JsonText, nullable=False),
    Column("complete_time", UtcMicros, nullable=True),
    # Of an erasure: the person's pseudonym as a user who asks.
    Column("asked_by", String(40), nullable=False, server_default=""),
)

# Answers that were erased, so that an event that arrives late or again does not bring them back.
erased_answers = Table(
    "erased_answers",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("erase_time", UtcMicros, nullable=False, index=True),
)

# Erasures that cleaning has to carry out still; `records` are ids of records, `done` counts the times that it did.
pending_erasures = Table(
    "pending_erasures",
    metadata,
    Column("exclusion_id", String(64), primary_key=True),
    Column("records", JsonText, nullable=False),
    Column("done", Integer, nullable=False),
)

# How many records each cycle took of whom.
taught = Table(
    "taught",
    metadata,
    Column("cycle", String(160), primary_key=True),
    Column("person", String(32), primary_key=True, index=True),
    Column("api_key", String(128), primary_key=True, index=True),
    Column("pipeline", String(64), nullable=False),
    Column("records", Integer, nullable=False),
)

# One row, made with the table: pseudonyms of this mesh differ from those of another.
pseudonym_salt = Table("pseudonym_salt", metadata, Column("salt", String(64), primary_key=True))
