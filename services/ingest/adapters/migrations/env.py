"""Alembic environment of the ingest service."""

from services.ingest.adapters.tables import metadata
from services.kit.storage.alembic_env import run_migrations

run_migrations(metadata)
