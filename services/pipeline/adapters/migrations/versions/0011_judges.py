"""Judges: their ratings, what they cost, and the verdicts on them."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "judge_ratings",
        sa.Column("answer", sa.String(80), primary_key=True),
        sa.Column("judge", sa.String(64), primary_key=True),
        sa.Column("model", sa.String(80), nullable=False),
        sa.Column("version", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("rating", sa.Float, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("due_time", sa.BigInteger, nullable=False),
        sa.Column("rate_time", sa.BigInteger, nullable=True),
    )
    op.create_index("ix_judge_ratings_work", "judge_ratings", ["model", "judge", "state", "due_time"])
    op.create_table(
        "judge_usage",
        sa.Column("model", sa.String(80), primary_key=True),
        sa.Column("judge", sa.String(64), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("calls", sa.Integer, nullable=False),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("over_limit", sa.Integer, nullable=False),
    )
    op.create_table(
        "judge_checks",
        sa.Column("model", sa.String(80), primary_key=True),
        sa.Column("judge", sa.String(64), primary_key=True),
        sa.Column("version", sa.String(16), nullable=False),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("check_time", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("judge_checks")
    op.drop_table("judge_usage")
    op.drop_index("ix_judge_ratings_work", "judge_ratings")
    op.drop_table("judge_ratings")
