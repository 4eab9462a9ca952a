"""A database that is away or locked is a retryable error, so that the bus delivers again and callers retry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import InterfaceError, OperationalError

from services.kit.errors import UnavailableError


@contextmanager
def translate_database_errors() -> Iterator[None]:
    """Raises UnavailableError where the database does not answer."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise UnavailableError(
            f"The database of ingest does not answer: {error.orig}", reason="DATABASE_UNAVAILABLE", retry_after_s=1
        ) from error
