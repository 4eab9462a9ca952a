"""Who asked what was captured, by pseudonym."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("captured_answers", sa.Column("asked_by", sa.String(40), nullable=False, server_default=""))
    op.create_index("ix_captured_answers_asked_by", "captured_answers", ["asked_by"])


def downgrade() -> None:
    op.drop_index("ix_captured_answers_asked_by", "captured_answers")
    op.drop_column("captured_answers", "asked_by")
