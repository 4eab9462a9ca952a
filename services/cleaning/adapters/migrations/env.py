"""Alembic environment of the cleaning service."""

from services.cleaning.adapters.tables import metadata
from services.kit.storage.alembic_env import run_migrations

run_migrations(metadata)
