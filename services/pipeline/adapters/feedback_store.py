"""Feedback and answers in the service's database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, Engine, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from services.kit.errors import AbortedError, request_id_reused
from services.kit.storage.database import one_at_a_time, read_only, translate_database_errors
from services.pipeline.adapters.late_arrivals import without_erased
from services.pipeline.adapters.lessons import JOIN, learn
from services.pipeline.adapters.review_store import queue
from services.pipeline.adapters.rows import feedback_of, feedback_row
from services.pipeline.adapters.tables import answers, feedback
from services.pipeline.domain.feedback import Answer, Feedback


class SqlFeedbackStore:
    """Implements `services.pipeline.app.ports.FeedbackStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def record(self, items: Sequence[Feedback], sent: Sequence[datetime] | None = None) -> Sequence[Feedback]:
        """See the port."""
        try:
            with translate_database_errors(), self._engine.begin() as connection:
                one_at_a_time(connection, JOIN)
                items = without_erased(connection, items, sent)
                recorded = [self._record(connection, item) for item in items]
                learn(connection, {item.answer for item in items})
                queue(connection, {item.answer for item in items})
                return recorded
        except IntegrityError as error:
            raise AbortedError("The same feedback was recorded at the same time. Retry.") from error

    @staticmethod
    def _record(connection: Connection, item: Feedback) -> Feedback:
        repeat = select(feedback).where(feedback.c.request_id == item.request_id)
        known = connection.execute(repeat).mappings().first() if item.request_id else None
        if known is not None:
            kept = feedback_of(known)
            if kept.said != item.said:
                # In the transaction: nothing else of the batch may be stored.
                raise request_id_reused(item.request_id, "judgement", feedback=kept.name)
            return kept
        version = select(answers.c.model_version).where(answers.c.name == item.answer)
        row = {**feedback_row(item), "model_version": connection.execute(version).scalar() or ""}
        connection.execute(insert(feedback).values({**row, "announced": False}))
        return feedback_of(row)

    def page(self, model: str, before: str, limit: int) -> Sequence[Feedback]:
        """See the port."""
        query = select(feedback).order_by(feedback.c.feedback_id.desc()).limit(limit)
        if model:
            query = query.where(feedback.c.model_version.startswith(f"{model}/", autoescape=True))
        if before:
            query = query.where(feedback.c.feedback_id < before)
        with translate_database_errors(), self._reads.connect() as connection:
            return [feedback_of(row) for row in connection.execute(query).mappings()]

    def unannounced(self, limit: int) -> Sequence[Feedback]:
        """See the port."""
        query = select(feedback).where(feedback.c.announced.is_(False)).order_by(feedback.c.feedback_id).limit(limit)
        with translate_database_errors(), self._reads.connect() as connection:
            return [feedback_of(row) for row in connection.execute(query).mappings()]

    def mark_announced(self, feedback_ids: Sequence[str]) -> None:
        """See the port."""
        statement = update(feedback).where(feedback.c.feedback_id.in_(feedback_ids)).values(announced=True)
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(statement)

    def remember(self, given: Sequence[Answer]) -> None:
        """See the port."""
        newest = {answer.name: answer for answer in given}
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, JOIN)
            known = set(connection.execute(select(answers.c.name).where(answers.c.name.in_(list(newest)))).scalars())
            rows = [
                {"name": a.name, "model_version": a.model_version, "answer_time": a.answer_time}
                for a in newest.values()
                if a.name not in known
            ]
            if not rows:
                return
            connection.execute(insert(answers), rows)
            judged = connection.execute(
                select(feedback.c.answer).where(feedback.c.answer.in_([r["name"] for r in rows])).distinct()
            ).scalars()
            late = [{"answer_": name, "version_": newest[name].model_version} for name in judged]
            if late:
                statement = update(feedback).where(feedback.c.answer == bindparam("answer_"))
                connection.execute(statement.values(model_version=bindparam("version_")), late)

    def forget(self, before: datetime) -> int:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            return connection.execute(delete(answers).where(answers.c.answer_time < before)).rowcount

    def versions(self, names: Sequence[str]) -> Mapping[str, str]:
        """See the port."""
        query = select(answers.c.name, answers.c.model_version).where(answers.c.name.in_(list(names)))
        with translate_database_errors(), self._reads.connect() as connection:
            return {row.name: row.model_version for row in connection.execute(query)}
