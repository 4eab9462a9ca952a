"""Answers to review, and what was decided about them."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "review_items",
        sa.Column("answer", sa.String(80), primary_key=True),
        sa.Column("model", sa.String(80), nullable=False, index=True),
        sa.Column("need", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("wanted", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("reviewer", sa.String(256), nullable=False),
        sa.Column("lease_end", sa.BigInteger, nullable=True),
        sa.Column("lease_minutes", sa.Float, nullable=False),
    )
    op.create_table(
        "review_decisions",
        sa.Column("answer", sa.String(80), primary_key=True),
        sa.Column("reviewer", sa.String(256), primary_key=True),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("feedback", sa.String(80), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("review_decisions")
    op.drop_table("review_items")
