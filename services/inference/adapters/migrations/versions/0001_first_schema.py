"""First schema: models and their versions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("serving", sa.Integer, nullable=True),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "roll_backs",
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
    )
    op.create_table(
        "model_versions",
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("artifact_uri", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("run", sa.String(128), nullable=False),
        sa.Column("dataset_version", sa.String(256), nullable=False),
        sa.Column("build", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("serve_time", sa.BigInteger, nullable=True),
        sa.Column("announced", sa.Boolean, nullable=False),
    )
    op.create_index(
        "ix_model_versions_unannounced",
        "model_versions",
        ["model"],
        sqlite_where=sa.text("announced = 0"),
        postgresql_where=sa.text("announced = false"),
    )


def downgrade() -> None:
    for table in ("model_versions", "roll_backs", "models"):
        op.drop_table(table)
