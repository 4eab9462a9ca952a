"""Roles, expiry, last use, tenant and limits. Existing keys keep all roles."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ALL = "admin,ingest,operate,predict,read"


def upgrade():
    op.add_column("api_keys", sa.Column("roles", sa.String(128), nullable=False, server_default=_ALL))
    op.add_column("api_keys", sa.Column("tenant", sa.String(64), nullable=False, server_default=""))
    op.add_column("api_keys", sa.Column("expire_time", sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_keys", sa.Column("last_use_time", sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_keys", sa.Column("requests_per_s", sa.Float, nullable=True))
    op.add_column("api_keys", sa.Column("concurrent_requests", sa.Integer, nullable=True))


def downgrade():
    for name in ("concurrent_requests", "requests_per_s", "last_use_time", "expire_time", "tenant", "roles"):
        op.drop_column("api_keys", name)
