"""First schema: cycles, feedback, answers."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cycles",
        sa.Column("cycle_id", sa.String(64), primary_key=True),
        sa.Column("pipeline", sa.String(64), nullable=False, index=True),
        sa.Column("at_work", sa.String(64), nullable=True, unique=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("request_id", sa.String(128), nullable=True, unique=True),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("announced", sa.Boolean, nullable=False, index=True),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "feedback",
        sa.Column("feedback_id", sa.String(64), primary_key=True),
        sa.Column("answer", sa.String(80), nullable=False, index=True),
        sa.Column("rating", sa.Float, nullable=False),
        sa.Column("correction", sa.Text, nullable=False),
        sa.Column("author", sa.String(256), nullable=False),
        sa.Column("model_version", sa.String(160), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=True, unique=True),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("announced", sa.Boolean, nullable=False, index=True),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "answers",
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("model_version", sa.String(160), nullable=False),
        sa.Column("answer_time", sa.BigInteger, nullable=False, index=True),
    )


def downgrade() -> None:
    op.drop_table("answers")
    op.drop_table("feedback")
    op.drop_table("cycles")
