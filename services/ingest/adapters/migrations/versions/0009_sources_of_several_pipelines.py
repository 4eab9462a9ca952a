"""A source ends with the last pipeline that declares it."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("declared_sources", sa.Column("pipelines", sa.Text(), nullable=False, server_default="[]"))
    op.execute("UPDATE declared_sources SET pipelines = '[\"' || pipeline || '\"]' WHERE pipeline <> ''")
    op.drop_column("declared_sources", "pipeline")


def downgrade() -> None:
    op.add_column("declared_sources", sa.Column("pipeline", sa.String(80), nullable=False, server_default=""))
    # Of several, the first.
    op.execute(
        "UPDATE declared_sources SET pipeline = substr(pipelines, 3, position('\"' in substr(pipelines, 3)) - 1) "
        "WHERE pipelines <> '[]'"
        if op.get_bind().dialect.name == "postgresql"
        else "UPDATE declared_sources SET pipeline = substr(pipelines, 3, instr(substr(pipelines, 3), '\"') - 1) "
        "WHERE pipelines <> '[]'"
    )
    op.drop_column("declared_sources", "pipelines")
