"""First schema: raw records, verdicts, data sets and their versions."""

import sqlalchemy as sa
from alembic import op

from services.cleaning.adapters.migrations.verdicts import result_columns

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "raw_records",
        sa.Column("record_id", sa.String(128), primary_key=True),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("attributes", sa.Text, nullable=False),
        sa.Column("content_digest", sa.String(64), nullable=False),
        sa.Column("import_name", sa.String(80), nullable=False),
    )
    op.create_index("ix_raw_records_source", "raw_records", ["source"])
    op.create_table(
        "import_records",
        sa.Column("import_name", sa.String(80), primary_key=True),
        sa.Column("record_id", sa.String(128), primary_key=True),
    )
    op.create_table(
        "verdicts",
        sa.Column("dataset", sa.String(80), primary_key=True),
        sa.Column("record_id", sa.String(128), primary_key=True),
        sa.Column("source", sa.String(64), nullable=False),
        *result_columns(),
    )
    op.create_index(
        "ix_verdicts_unannounced",
        "verdicts",
        ["record_id"],
        sqlite_where=sa.text("announced = 0"),
        postgresql_where=sa.text("announced = false"),
    )
    op.create_index("ix_verdicts_record", "verdicts", ["record_id"])
    op.create_table(
        "datasets",
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("recipe_digest", sa.String(64), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "dataset_versions",
        sa.Column("dataset", sa.String(80), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("recipe_digest", sa.String(64), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("reused", sa.Boolean, nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("announced", sa.Boolean, nullable=False),
    )
    op.create_index("ix_dataset_versions_state", "dataset_versions", ["state"])
    op.create_index(
        "ux_dataset_versions_request",
        "dataset_versions",
        ["dataset", "request_id"],
        unique=True,
        sqlite_where=sa.text("request_id <> ''"),
        postgresql_where=sa.text("request_id <> ''"),
    )


def downgrade() -> None:
    for table in ("dataset_versions", "datasets", "verdicts", "import_records", "raw_records"):
        op.drop_table(table)
