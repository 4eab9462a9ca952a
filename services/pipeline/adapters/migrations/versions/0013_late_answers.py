"""What keeps answers and feedback that arrive after their erasure from coming back."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("exclusions", sa.Column("asked_by", sa.String(40), nullable=False, server_default=""))
    op.create_table(
        "erased_answers",
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("erase_time", sa.BigInteger, nullable=False, index=True),
    )


def downgrade() -> None:
    op.drop_table("erased_answers")
    with op.batch_alter_table("exclusions") as table:
        table.drop_column("asked_by")
