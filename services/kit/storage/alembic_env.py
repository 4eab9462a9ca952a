"""Shared part of every service's Alembic `env.py`: runs the migrations on the connection of `open_database`."""

from __future__ import annotations

from alembic import context
from sqlalchemy import MetaData


def run_migrations(metadata: MetaData) -> None:
    """Runs the pending migrations; call it from `env.py` with the service's metadata."""
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
