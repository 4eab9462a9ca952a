"""Column types that databases do not have, or not all alike."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Dialect, Text, TypeDecorator

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The moment, in UTC."""
    return _EPOCH + micros * _MICROSECOND


class FreeText(TypeDecorator[str]):
    """Text of any characters. PostgreSQL cannot store NUL: it becomes U+FFFD, so that no record is refused for it."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """The value to send to the database."""
        return value.replace("\0", "\ufffd") if value and dialect.name == "postgresql" else value


class UtcMicros(TypeDecorator[datetime]):
    """An aware time, kept as microseconds since 1970, which every database sorts and compares alike."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """The value to send to the database."""
        return None if value is None else to_micros(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """The value read from the database."""
        return None if value is None else from_micros(value)


class JsonText(TypeDecorator[Any]):
    """A JSON value, kept as text in canonical form (sorted keys, no spaces), so that equal values are equal texts."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """The value to send to the database."""
        if value is None:
            return None
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """The value read from the database."""
        return None if value is None else json.loads(value)
