"""Routes of several versions: each model has one with the version that serves."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "route_changes",
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("revision", sa.Integer, primary_key=True),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("change_time", sa.BigInteger, nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("announced", sa.Boolean, nullable=False),
    )
    op.create_index(
        "ix_route_changes_unannounced",
        "route_changes",
        ["change_time"],
        sqlite_where=sa.text("announced = 0"),
        postgresql_where=sa.text("announced = false"),
    )
    op.add_column("models", sa.Column("revision", sa.Integer, nullable=False, server_default="0"))
    op.add_column("model_versions", sa.Column("generation", sa.Integer, nullable=False, server_default="0"))
    models = sa.table(
        "models", *(sa.column(name) for name in ("name", "serving", "revision", "generation", "update_time"))
    )
    versions = sa.table("model_versions", *(sa.column(name) for name in ("model", "number", "generation")))
    changes = sa.table(
        "route_changes",
        *(sa.column(name) for name in ("model", "revision", "content", "change_time", "traceparent")),
        sa.column("announced", sa.Boolean),
    )
    connection = op.get_bind()
    for model in connection.execute(sa.select(models).where(models.c.serving.is_not(None))).all():
        entry = {"number": model.serving, "role": "serving", "weight": 100, "users": [[0, 10_000]]}
        connection.execute(
            sa.insert(changes).values(
                model=model.name,
                revision=1,
                content=json.dumps({"aliases": {}, "entries": [entry]}, sort_keys=True, separators=(",", ":")),
                change_time=model.update_time,
                traceparent="",
                announced=True,
            )
        )
        connection.execute(sa.update(models).where(models.c.name == model.name).values(revision=1))
        same = (versions.c.model == model.name) & (versions.c.number == model.serving)
        connection.execute(sa.update(versions).where(same).values(generation=model.generation))
    op.drop_column("models", "generation")


def downgrade() -> None:
    op.add_column("models", sa.Column("generation", sa.Integer, nullable=False, server_default="0"))
    op.drop_column("model_versions", "generation")
    op.drop_column("models", "revision")
    op.drop_table("route_changes")
