"""What crawls know of each address."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "crawled_pages",
        sa.Column("origin", sa.String(64), primary_key=True),
        sa.Column("address_digest", sa.String(64), primary_key=True),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("listed_by", sa.String(80), nullable=False),
        sa.Column("done_by", sa.String(80), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.Column("hops", sa.Integer(), nullable=False),
        sa.Column("is_sitemap", sa.Boolean(), nullable=False),
        sa.Column("etag", sa.String(1024), nullable=False),
        sa.Column("last_modified", sa.String(128), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("refusal", sa.Text(), nullable=True),
    )
    op.create_index("ix_crawled_pages_listed", "crawled_pages", ["origin", "listed_by", "number"])


def downgrade() -> None:
    op.drop_table("crawled_pages")
