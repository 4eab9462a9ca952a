"""Records can be counted by when they arrived."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_raw_records_arrival", "raw_records", ["source", "arrival"])


def downgrade() -> None:
    op.drop_index("ix_raw_records_arrival", "raw_records")
