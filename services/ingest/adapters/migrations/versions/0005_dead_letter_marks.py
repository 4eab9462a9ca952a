"""Which dead letters were replayed or dropped, and by whom."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dead_letter_marks",
        sa.Column("log_id", sa.String(64), primary_key=True),
        sa.Column("letter_offset", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("actor", sa.String(160), nullable=False),
        sa.Column("decide_time", sa.BigInteger(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("dead_letter_marks")
