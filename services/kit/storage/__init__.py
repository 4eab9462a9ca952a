"""State: databases by SQLAlchemy and Alembic, artefacts by fsspec."""
