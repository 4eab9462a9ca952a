"""Answers to requests with a `request_id`."""

from alembic import op
from sqlalchemy import MetaData

from services.kit.storage.requests import request_table

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    request_table(MetaData()).create(op.get_bind())


def downgrade() -> None:
    op.drop_table("answered_requests")
