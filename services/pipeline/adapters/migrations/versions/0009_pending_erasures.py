"""Erasures that cleaning has to carry out still."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pending_erasures",
        sa.Column("exclusion_id", sa.String(64), primary_key=True),
        sa.Column("records", sa.Text, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
    )
    # Those of earlier releases left texts in cleaning.
    op.execute("INSERT INTO pending_erasures SELECT exclusion_id, '[]', 0 FROM exclusions WHERE kind = 'erasure'")
    with op.batch_alter_table("exclusions") as table:
        table.add_column(sa.Column("rewritten", sa.Text, nullable=False, server_default="[]"))
        table.add_column(sa.Column("complete_time", sa.BigInteger, nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("exclusions") as table:
        table.drop_column("complete_time")
        table.drop_column("rewritten")
    op.drop_table("pending_erasures")
