"""Alerts that triggers name."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "alerts",
        sa.Column("pipeline", sa.String(64), primary_key=True),
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("start_time", sa.BigInteger, nullable=False),
        sa.Column("report_time", sa.BigInteger, nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("resolved", sa.Boolean, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("alerts")
