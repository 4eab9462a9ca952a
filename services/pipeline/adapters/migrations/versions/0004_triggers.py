"""Triggers, and the cycles that they started."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "triggers",
        sa.Column("pipeline", sa.String(64), primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("scheduled_until", sa.BigInteger, nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("pause_reason", sa.Text, nullable=False),
        sa.Column("met_since", sa.BigInteger, nullable=True),
        sa.Column("cursors", sa.Text, nullable=False),
    )
    op.create_table(
        "trigger_firings",
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("pipeline", sa.String(64), nullable=False, index=True),
        sa.Column("fire_time", sa.BigInteger, nullable=False),
        sa.Column("reasons", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("cycle", sa.String(160), nullable=False, index=True),
        sa.Column("error", sa.Text, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("trigger_firings")
    op.drop_table("triggers")
