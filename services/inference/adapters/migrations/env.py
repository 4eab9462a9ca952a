"""Alembic environment of the inference service."""

from services.inference.adapters.tables import metadata
from services.kit.storage.alembic_env import run_migrations

run_migrations(metadata)
