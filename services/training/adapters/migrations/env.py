"""Alembic environment of the training service."""

from services.kit.storage.alembic_env import run_migrations
from services.training.adapters.tables import metadata

run_migrations(metadata)
