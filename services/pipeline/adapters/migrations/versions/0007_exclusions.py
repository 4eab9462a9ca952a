"""Quarantines and erasures, and whose feedback each cycle took."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "exclusions",
        sa.Column("exclusion_id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("api_key", sa.String(128), nullable=False),
        sa.Column("person", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("removed", sa.Text, nullable=False),
        sa.Column("ordered", sa.Text, nullable=False),
        sa.Column("lift_time", sa.BigInteger, nullable=True),
    )
    op.create_table(
        "taught",
        sa.Column("cycle", sa.String(160), primary_key=True),
        sa.Column("person", sa.String(32), primary_key=True, index=True),
        sa.Column("api_key", sa.String(128), primary_key=True, index=True),
        sa.Column("pipeline", sa.String(64), nullable=False),
        sa.Column("records", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("taught")
    op.drop_table("exclusions")
