"""Columns of the table of verdicts that the first two migrations share. A later change is a migration of its own."""

from typing import Any

import sqlalchemy as sa


def result_columns() -> list[sa.Column[Any]]:
    """What was decided on a record, and from what."""
    return [
        sa.Column("recipe_digest", sa.String(64), nullable=False),
        sa.Column("content_digest", sa.String(64), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("attributes", sa.Text, nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("announced", sa.Boolean, nullable=False),
    ]
