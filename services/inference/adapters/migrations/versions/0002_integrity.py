"""What the last verification of a version's files found."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model_versions", sa.Column("integrity", sa.String(16), nullable=False, server_default=""))
    op.add_column("model_versions", sa.Column("verify_time", sa.BigInteger, nullable=True))
    op.add_column("model_versions", sa.Column("integrity_message", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    for column in ("integrity_message", "verify_time", "integrity"):
        op.drop_column("model_versions", column)
