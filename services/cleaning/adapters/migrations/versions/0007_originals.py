"""How originals are kept, and whose records are. What was stored before is plain."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TABLES = ("raw_records", "verdicts")


def upgrade() -> None:
    op.add_column("raw_records", sa.Column("tenant", sa.String(64), nullable=False, server_default=sa.text("''")))
    for table in _TABLES:
        op.add_column(table, sa.Column("originals", sa.String(16), nullable=False, server_default=sa.text("'plain'")))
        op.add_column(table, sa.Column("key_id", sa.String(16), nullable=False, server_default=sa.text("''")))
        op.add_column(table, sa.Column("sealed", sa.LargeBinary))
        encrypted = sa.text("key_id <> ''")
        op.create_index(f"ix_{table}_key", table, ["key_id"], sqlite_where=encrypted, postgresql_where=encrypted)


def downgrade() -> None:
    for table in _TABLES:
        op.drop_index(f"ix_{table}_key", table)
        for name in ("sealed", "key_id", "originals"):
            op.drop_column(table, name)
    op.drop_column("raw_records", "tenant")
