"""Alembic's entry."""

from gateway.keys.store import metadata
from services.kit.storage.alembic_env import run_migrations

run_migrations(metadata)
