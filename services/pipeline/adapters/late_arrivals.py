"""What arrives after its erasure, late or again, and must not come back.

Call it in a transaction with the lock `JOIN`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from services.kit.errors import NotFoundError
from services.kit.storage.database import in_parts
from services.pipeline.adapters.lessons import salt_of
from services.pipeline.adapters.tables import erased_answers, exclusions
from services.pipeline.domain.capture import CapturedAnswer
from services.pipeline.domain.exclusion import ExclusionKind
from services.pipeline.domain.feedback import Feedback
from services.pipeline.domain.learning import pseudonym

_CLOCKS_DIFFER = timedelta(minutes=5)
"""The clock that dates an answer may be ahead by this much of the one that dates an erasure."""

_KEEP = timedelta(days=30)
"""Longer than a topic keeps what its readers have read."""


def note_erased(connection: Connection, answers: Collection[str], now: datetime) -> None:
    """Notes the names of answers that are erased."""
    new = sorted(set(answers) - _noted(connection, answers))
    if new:
        connection.execute(insert(erased_answers), [{"name": name, "erase_time": now} for name in new])


def forget_erased(connection: Connection, now: datetime) -> None:
    """Forgets names of erased answers that no event can bring back any more."""
    connection.execute(delete(erased_answers).where(erased_answers.c.erase_time < now - _KEEP))


def erased_among(connection: Connection, answers: Sequence[CapturedAnswer]) -> set[str]:
    """The names of answers that were erased, or were asked before their user was."""
    found = _noted(connection, [answer.name for answer in answers])
    erased = _erased(connection, exclusions.c.asked_by, (answer.asked_by for answer in answers))
    for answer in answers:
        when = erased.get(answer.asked_by)
        if when is not None and answer.answer_time <= when + _CLOCKS_DIFFER:
            found.add(answer.name)
    return found


def without_erased(
    connection: Connection, items: Sequence[Feedback], sent: Sequence[datetime] | None
) -> Sequence[Feedback]:
    """Those judgements that do not belong to what was erased.

    Raises:
        NotFoundError: an answer was erased, and `sent` is None: its caller waits for a response.
    """
    gone = _noted(connection, [item.answer for item in items])
    if sent is None:
        for item in items:
            if item.answer in gone:
                message = f"{item.answer} was erased with what its user gave; it cannot be judged any more."
                raise NotFoundError(message, reason="ANSWER_ERASED", metadata={"answer": item.answer})
        return items
    salt = salt_of(connection)
    people = [pseudonym(item, salt) for item in items]
    erased = _erased(connection, exclusions.c.person, people)
    return [
        item
        for item, person, time in zip(items, people, sent, strict=True)
        if item.answer not in gone and not (person in erased and time <= erased[person])
    ]


def _noted(connection: Connection, answers: Collection[str]) -> set[str]:
    query = select(erased_answers.c.name)
    parts = (query.where(erased_answers.c.name.in_(part)) for part in in_parts(answers))
    return {name for part in parts for name in connection.execute(part).scalars()}


def _erased(connection: Connection, column: Any, people: Iterable[str]) -> Mapping[str, datetime]:
    """When people were erased last; those who were not are left out."""
    names = {name for name in people if name}
    if not names:
        return {}
    where = (exclusions.c.kind == ExclusionKind.ERASURE.value, column.in_(sorted(names)))
    query = select(column, func.max(exclusions.c.create_time)).where(*where).group_by(column)
    return {row[0]: row[1] for row in connection.execute(query)}
