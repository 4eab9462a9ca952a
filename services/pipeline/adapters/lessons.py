"""What feedback teaches, brought up to date in the transaction that brings an answer or a judgement of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from sqlalchemy import Connection, delete, insert, select

from services.pipeline.adapters.rows import captured_of, feedback_of, lesson_row
from services.pipeline.adapters.tables import captured_answers, exclusions, feedback, lessons, pseudonym_salt
from services.pipeline.domain.exclusion import ExclusionKind
from services.pipeline.domain.feedback import Feedback
from services.pipeline.domain.learning import lesson_of

JOIN = "feedback and answers"
"""Lock: a judgement and its answer may arrive at the same time, and the later one must see the earlier."""


def learn(connection: Connection, answers: Collection[str]) -> None:
    """Derives the lessons of these answers again; those whose captured answer has expired stay as they are.

    Call it with the lock `JOIN`, after the answer or the judgement was stored.
    """
    where = captured_answers.c.name.in_(list(answers))
    captured = [captured_of(row) for row in connection.execute(select(captured_answers).where(where)).mappings()]
    if not captured:
        return
    names = [answer.name for answer in captured]
    said: dict[str, list[Feedback]] = defaultdict(list)
    for row in connection.execute(select(feedback).where(feedback.c.answer.in_(names))).mappings():
        said[row["answer"]].append(feedback_of(row))
    if not said:
        return
    salt = salt_of(connection)
    made = [lesson_of(answer, said[answer.name], salt) for answer in captured if answer.name in said]
    connection.execute(delete(lessons).where(lessons.c.answer.in_(list(said))))
    if rows := [lesson_row(lesson) for lesson in made if lesson is not None]:
        connection.execute(insert(lessons), rows)


def salt_of(connection: Connection) -> bytes:
    """What makes pseudonyms of this mesh differ from those of another."""
    return bytes.fromhex(connection.execute(select(pseudonym_salt.c.salt)).scalar_one())


def quarantined(connection: Connection) -> Collection[str]:
    """Pseudonyms and API keys whose feedback is not trusted."""
    holds = (exclusions.c.kind == ExclusionKind.QUARANTINE.value, exclusions.c.lift_time.is_(None))
    query = select(exclusions.c.api_key, exclusions.c.person).where(*holds)
    return {name for row in connection.execute(query) for name in row if name}
