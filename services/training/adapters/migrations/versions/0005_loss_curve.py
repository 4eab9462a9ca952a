"""The loss of a training while it runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("loss_curve", sa.Text, nullable=False, server_default="[]"))


def downgrade() -> None:
    op.drop_column("runs", "loss_curve")
