"""First schema: imports, the requests that asked for them, accepted batches."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "imports",
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("spec_digest", sa.String(64), nullable=False),
        sa.Column("source_digest", sa.String(64), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("record_count", sa.BigInteger, nullable=False),
        sa.Column("rejected_count", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("announced", sa.Boolean, nullable=False),
    )
    op.create_index("ix_imports_state", "imports", ["state"])
    op.create_index("ix_imports_content", "imports", ["spec_digest", "source_digest"])
    op.create_table(
        "import_requests",
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("spec_digest", sa.String(64), nullable=False),
        sa.Column("import_name", sa.String(80), nullable=False),
        sa.Column("reused", sa.Boolean, nullable=False),
    )
    op.create_table(
        "batches",
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("accept_time", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_batches_accept_time", "batches", ["accept_time"])


def downgrade() -> None:
    for table in ("batches", "import_requests", "imports"):
        op.drop_table(table)
