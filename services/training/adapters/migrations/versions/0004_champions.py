"""The champion of each model: the run that was promoted last."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("model_name", sa.String(64), nullable=False, server_default=""))
    op.add_column("runs", sa.Column("promote_time", sa.BigInteger, nullable=True))
    op.create_index("ix_runs_model_name", "runs", ["model_name"])


def downgrade() -> None:
    op.drop_index("ix_runs_model_name", "runs")
    op.drop_column("runs", "promote_time")
    op.drop_column("runs", "model_name")
