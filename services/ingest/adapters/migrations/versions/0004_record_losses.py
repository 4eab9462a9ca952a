"""When raw records were lost: what was imported before is no longer all at its consumers."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("record_losses", sa.Column("find_time", sa.BigInteger(), primary_key=True, autoincrement=False))


def downgrade() -> None:
    op.drop_table("record_losses")
