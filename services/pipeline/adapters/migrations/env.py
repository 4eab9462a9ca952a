"""Alembic environment of the pipeline service."""

from services.kit.storage.alembic_env import run_migrations
from services.pipeline.adapters import rollout_tables

run_migrations(rollout_tables.rollouts.metadata)
