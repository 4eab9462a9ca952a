"""Tokens a day."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("api_keys", sa.Column("tokens_per_day", sa.BigInteger, nullable=True))


def downgrade():
    op.drop_column("api_keys", "tokens_per_day")
