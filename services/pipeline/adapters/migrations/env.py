"""Alembic environment of the pipeline service."""

from services.kit.storage.alembic_env import run_migrations
from services.pipeline.adapters.tables import metadata

run_migrations(metadata)
