"""Which tenant's key was the first to push to a source."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "source_tenants",
        sa.Column("source", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("source_tenants")
