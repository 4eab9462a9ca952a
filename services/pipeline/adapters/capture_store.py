"""Captured answers, the rules of capture, and what feedback teaches, in the service's database."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, Engine, delete, insert, literal, select, type_coerce, update

from services.kit.pseudonyms import user_key
from services.kit.storage.database import one_at_a_time, read_only, translate_database_errors
from services.pipeline.adapters.judge_rows import ask
from services.pipeline.adapters.late_arrivals import erased_among, forget_erased
from services.pipeline.adapters.lessons import JOIN, learn, quarantined, salt_of
from services.pipeline.adapters.review_store import queue
from services.pipeline.adapters.rows import capture_of, captured_of, captured_row, lesson_of_row
from services.pipeline.adapters.tables import capture_policies, captured_answers, judge_ratings, lessons, taught
from services.pipeline.domain.capture import Capture, CapturedAnswer, CapturePolicy
from services.pipeline.domain.learning import Lesson

_DAY_MICROS = 24 * 3600 * 1_000_000


class SqlCaptureStore:
    """Implements `services.pipeline.app.ports.CaptureStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def put_policy(self, model: str, pipeline: str, capture: Capture | None, now: datetime) -> CapturePolicy | None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, "capture policies")
            query = select(capture_policies).where(capture_policies.c.model == model)
            row = connection.execute(query).mappings().first()
            before = CapturePolicy(model, row["pipeline"], capture_of(row["capture"])) if row else None
            if capture is None and (before is None or before.pipeline != pipeline):
                return before
            if before == (capture and CapturePolicy(model, pipeline, capture)):
                return before
            connection.execute(delete(capture_policies).where(capture_policies.c.model == model))
            if capture is not None:
                values = {"model": model, "pipeline": pipeline, "capture": asdict(capture), "update_time": now}
                connection.execute(insert(capture_policies).values(values))
                given = type_coerce(captured_answers.c.answer_time, BigInteger)
                until = given + literal(capture.keep_days * _DAY_MICROS, BigInteger)
                kept = update(captured_answers).where(captured_answers.c.model == model)
                connection.execute(kept.values({captured_answers.c.expire_time: type_coerce(until, BigInteger)}))
            return before

    def policies(self) -> Sequence[CapturePolicy]:
        """See the port."""
        query = select(capture_policies).order_by(capture_policies.c.model)
        with translate_database_errors(), self._reads.connect() as connection:
            rows = connection.execute(query).mappings()
            return [CapturePolicy(row["model"], row["pipeline"], capture_of(row["capture"])) for row in rows]

    def user_key(self) -> str:
        """See the port."""
        with translate_database_errors(), self._reads.connect() as connection:
            return user_key(salt_of(connection))

    def keep(self, answers: Sequence[CapturedAnswer]) -> int:
        """See the port."""
        newest = {answer.name: answer for answer in answers}
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, JOIN)
            rules = {
                row["model"]: capture_of(row["capture"])
                for row in connection.execute(select(capture_policies)).mappings()
            }
            query = select(captured_answers.c.name).where(captured_answers.c.name.in_(list(newest)))
            known = set(connection.execute(query).scalars())
            erased = erased_among(connection, list(newest.values()))
            rows = [
                captured_row(answer, timedelta(days=rules[answer.model].keep_days))
                for answer in newest.values()
                if answer.name not in known | erased and answer.model in rules
            ]
            if rows:
                connection.execute(insert(captured_answers), rows)
                names = [row["name"] for row in rows]
                learn(connection, names)
                queue(connection, names)
                kept = [answer for answer in newest.values() if answer.name in set(names)]
                ask(connection, kept, {model: capture.judges for model, capture in rules.items()})
            return len(newest) - len(known) - len(rows)

    def answer(self, name: str) -> CapturedAnswer | None:
        """See the port."""
        found = self.answers([name])
        return found[0] if found else None

    def answers(self, names: Sequence[str]) -> Sequence[CapturedAnswer]:
        """See the port."""
        query = select(captured_answers).where(captured_answers.c.name.in_(list(names)))
        with translate_database_errors(), self._reads.connect() as connection:
            return [captured_of(row) for row in connection.execute(query).mappings()]

    def page(self, model: str, before: str, limit: int) -> Sequence[CapturedAnswer]:
        """See the port."""
        query = select(captured_answers).order_by(captured_answers.c.name.desc()).limit(limit)
        if model:
            query = query.where(captured_answers.c.model == model)
        if before:
            query = query.where(captured_answers.c.name < f"answers/{before}")
        with translate_database_errors(), self._reads.connect() as connection:
            return [captured_of(row) for row in connection.execute(query).mappings()]

    def expire(self, now: datetime) -> int:
        """See the port."""
        old = captured_answers.c.expire_time < now
        with translate_database_errors(), self._engine.begin() as connection:
            # A reason may quote the answer, so it goes with it.
            theirs = judge_ratings.c.answer.in_(select(captured_answers.c.name).where(old))
            connection.execute(delete(judge_ratings).where(theirs))
            forget_erased(connection, now)
            return connection.execute(delete(captured_answers).where(old)).rowcount

    def lessons(self, model: str) -> Sequence[Lesson]:
        """See the port."""
        with translate_database_errors(), self._reads.connect() as connection:
            rows = connection.execute(select(lessons).where(lessons.c.model == model)).mappings()
            return [lesson_of_row(row) for row in rows]

    def quarantined(self) -> Collection[str]:
        """See the port."""
        with translate_database_errors(), self._reads.connect() as connection:
            return quarantined(connection)

    def note_taught(self, cycle: str, pipeline: str, records: Mapping[tuple[str, str], int]) -> None:
        """See the port."""
        rows = [
            {"cycle": cycle, "pipeline": pipeline, "person": person, "api_key": key, "records": count}
            for (person, key), count in sorted(records.items())
        ]
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(delete(taught).where(taught.c.cycle == cycle))
            if rows:
                connection.execute(insert(taught), rows)
