"""Sources that the mesh collects by itself, and the orders to collect them."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "declared_sources",
        sa.Column("source", sa.String(64), primary_key=True),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("origin", sa.String(64), nullable=False),
        sa.Column("timetable", sa.Text(), nullable=True),
        sa.Column("pipeline", sa.String(80), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("pause_reason", sa.String(256), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.Column("due_time", sa.BigInteger(), nullable=True),
        sa.Column("deleted", sa.Boolean(), nullable=False),
    )
    op.create_index("ix_declared_sources_origin", "declared_sources", ["origin"])
    op.create_index("ix_declared_sources_due_time", "declared_sources", ["due_time"])
    op.create_table(
        "source_collections",
        sa.Column("order_id", sa.String(64), primary_key=True),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("order_time", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(160), nullable=False),
        sa.Column("pending", sa.Boolean(), nullable=False),
        sa.Column("import_name", sa.String(80), nullable=False),
        sa.Column("reused", sa.Boolean(), nullable=False),
        sa.Column("failure", sa.Text(), nullable=True),
    )
    op.create_index("ix_source_collections_source", "source_collections", ["source", "order_time"])
    op.create_index("ix_source_collections_pending", "source_collections", ["pending"])


def downgrade() -> None:
    op.drop_table("source_collections")
    op.drop_table("declared_sources")
