"""Captured answers, what feedback teaches, and more of what is said of an answer."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SAID = (("label", sa.String(256)), ("episode", sa.String(128)), ("signal", sa.String(16)), ("comment", sa.Text))
_CALLER = (("tenant", sa.String(128)), ("api_key", sa.String(128)))


def upgrade() -> None:
    for name, kind in (*_SAID, *_CALLER):
        op.add_column("feedback", sa.Column(name, kind, nullable=False, server_default=sa.text("''")))
    op.create_table(
        "capture_policies",
        sa.Column("model", sa.String(80), primary_key=True),
        sa.Column("pipeline", sa.String(64), nullable=False),
        sa.Column("capture", sa.Text, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "captured_answers",
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("model", sa.String(80), nullable=False, index=True),
        sa.Column("model_version", sa.String(160), nullable=False),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("answer_time", sa.BigInteger, nullable=False),
        sa.Column("conversation", sa.Boolean, nullable=False),
        sa.Column("label", sa.String(256), nullable=False),
        sa.Column("score", sa.Float, nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.Column("latency_ms", sa.Float, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "lessons",
        sa.Column("answer", sa.String(80), primary_key=True),
        sa.Column("model", sa.String(80), nullable=False, index=True),
        sa.Column("model_version", sa.String(160), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("given", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("classification", sa.Boolean, nullable=False),
        sa.Column("person", sa.String(32), nullable=False),
        sa.Column("api_key", sa.String(128), nullable=False),
        sa.Column("feedback", sa.String(80), nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
    )
    salt = op.create_table("pseudonym_salt", sa.Column("salt", sa.String(64), primary_key=True))
    op.bulk_insert(salt, [{"salt": secrets.token_hex(32)}])


def downgrade() -> None:
    for name in ("pseudonym_salt", "lessons", "captured_answers", "capture_policies"):
        op.drop_table(name)
    for name, _ in (*_SAID, *_CALLER):
        op.drop_column("feedback", name)
