"""Where the last successful import of an incremental source ended."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "source_positions",
        sa.Column("origin", sa.String(64), primary_key=True),
        sa.Column("position", sa.Text(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("source_positions")
