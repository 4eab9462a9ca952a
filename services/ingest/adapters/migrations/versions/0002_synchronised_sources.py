"""What was pulled from each origin, so that what is gone from it can be withdrawn; who pulls an import.

Earlier releases did not record what their imports brought, so each of their sources is pulled once more on its next
import.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("imports", sa.Column("origin", sa.String(64), nullable=False, server_default=""))
    op.add_column("imports", sa.Column("generation", sa.String(32), nullable=False, server_default=""))
    op.drop_index("ix_imports_content", "imports")
    op.create_index("ix_imports_origin", "imports", ["origin", "name"])
    op.create_table(
        "pulled_records",
        sa.Column("origin", sa.String(64), primary_key=True),
        sa.Column("record_id", sa.String(128), primary_key=True),
        sa.Column("content_digest", sa.String(64), nullable=False),
        sa.Column("seen_digest", sa.String(64), nullable=False),
        sa.Column("seen_by", sa.String(32), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("pulled_records")
    op.drop_index("ix_imports_origin", "imports")
    op.create_index("ix_imports_content", "imports", ["spec_digest", "source_digest"])
    op.drop_column("imports", "generation")
    op.drop_column("imports", "origin")
