"""What judges said of captured answers, and what they cost, in the service's database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, case, delete, func, insert, select, update

from services.kit.storage.database import one_at_a_time, read_only, translate_database_errors
from services.pipeline.adapters.audit_store import add
from services.pipeline.adapters.judge_rows import rating_of
from services.pipeline.adapters.lessons import JOIN, quarantined, salt_of
from services.pipeline.adapters.review_store import queue
from services.pipeline.adapters.rollout_metrics import person_of, value_of
from services.pipeline.adapters.rows import captured_of
from services.pipeline.adapters.tables import captured_answers, feedback, judge_checks, judge_ratings, judge_usage
from services.pipeline.app.judge_ports import Asked, Tally, Verdict
from services.pipeline.domain.audit import AuditEntry
from services.pipeline.domain.judge import JudgeRating, ModelJudge, Opinion, RatingState, short_reason
from services.pipeline.domain.rollout_plan import Metric

_GONE = "The judge did not answer within a day."


class SqlJudgeStore:
    """Implements `services.pipeline.app.judge_ports.JudgeStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def due(self, judge: ModelJudge, limit: int, now: datetime) -> Sequence[Asked]:
        """See the port."""
        query = select(captured_answers, judge_ratings.c.attempts.label("attempts"))
        query = query.join(judge_ratings, judge_ratings.c.answer == captured_answers.c.name)
        query = query.where(*_of(judge), _is(RatingState.PENDING), judge_ratings.c.due_time <= now)
        query = query.order_by(judge_ratings.c.due_time, judge_ratings.c.answer).limit(limit)
        with translate_database_errors(), self._reads.connect() as connection:
            return [Asked(captured_of(row), row["attempts"]) for row in connection.execute(query).mappings()]

    def give_up(self, judge: ModelJudge, before: datetime, now: datetime) -> int:
        """See the port."""
        values = {"state": RatingState.FAILED.value, "reason": _GONE, "rate_time": now}
        where = (*_of(judge), _is(RatingState.PENDING), judge_ratings.c.create_time < before)
        with translate_database_errors(), self._engine.begin() as connection:
            return connection.execute(update(judge_ratings).where(*where).values(values)).rowcount

    def spend(self, judge: ModelJudge, now: datetime) -> bool:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            _lock_usage(connection, judge)
            used = _usage(connection, judge, now)
            limit = judge.spec.max_tokens_per_day
            if used["calls"] >= judge.spec.max_calls_per_day or (limit and used["tokens"] >= limit):
                return False
            _count(connection, judge, now, calls=1)
            return True

    def rate(self, judge: ModelJudge, answer: str, opinion: Opinion, now: datetime) -> None:
        """See the port."""
        values = {
            "state": RatingState.RATED.value,
            "version": judge.spec.version,
            "rating": opinion.rating,
            "reason": short_reason(opinion.reason),
            "rate_time": now,
        }
        with translate_database_errors(), self._engine.begin() as connection:
            # The lock of answers and feedback: the queue is brought up to date with both.
            one_at_a_time(connection, JOIN)
            if opinion.tokens:
                _count(connection, judge, now, tokens=opinion.tokens)
            if _settle(connection, judge, answer, values):
                queue(connection, [answer])

    def skip(self, judge: ModelJudge, answer: str, first: AuditEntry, now: datetime) -> None:
        """See the port."""
        values = {"state": RatingState.OVER_LIMIT.value, "rate_time": now}
        with translate_database_errors(), self._engine.begin() as connection:
            # The first of a day is the first for two at once, too.
            _lock_usage(connection, judge)
            if not _settle(connection, judge, answer, values):
                return
            if not _usage(connection, judge, now)["over_limit"]:
                add(connection, [first])
            _count(connection, judge, now, over_limit=1)

    def postpone(self, judge: ModelJudge, answer: str, until: datetime) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            _settle(connection, judge, answer, {"due_time": until})

    def fail(
        self, judge: ModelJudge, answer: str, reason: str, tokens: int, retry: datetime | None, now: datetime
    ) -> None:
        """See the port."""
        values: dict[str, Any] = {"attempts": judge_ratings.c.attempts + 1, "reason": short_reason(reason)}
        if retry is None:
            values |= {"state": RatingState.FAILED.value, "rate_time": now}
        else:
            values |= {"due_time": retry}
        with translate_database_errors(), self._engine.begin() as connection:
            if tokens:
                _count(connection, judge, now, tokens=tokens)
            _settle(connection, judge, answer, values)

    def tally(self, judge: ModelJudge, now: datetime) -> Tally:
        """See the port."""
        good = func.sum(case((judge_ratings.c.rating > 0, 1), else_=0))
        query = select(judge_ratings.c.state, func.count().label("answers"), good.label("good")).where(*_of(judge))
        with translate_database_errors(), self._reads.connect() as connection:
            rows = {row.state: row for row in connection.execute(query.group_by(judge_ratings.c.state))}
            used = _usage(connection, judge, now)
        counts = {state: int(rows[state.value].answers) if state.value in rows else 0 for state in RatingState}
        rated = rows.get(RatingState.RATED.value)
        return Tally(
            rated=counts[RatingState.RATED],
            good=int(rated.good) if rated is not None else 0,
            pending=counts[RatingState.PENDING],
            failed=counts[RatingState.FAILED],
            over_limit=counts[RatingState.OVER_LIMIT],
            calls_today=used["calls"],
            tokens_today=used["tokens"],
        )

    def common(self, judge: ModelJudge) -> Sequence[tuple[bool, bool]]:
        """See the port."""
        said = ("rating", "signal", "correction", "label", "author", "tenant", "api_key")
        columns = [feedback.c[name] for name in said]
        query = select(
            judge_ratings.c.answer, judge_ratings.c.rating.label("judged"), captured_answers.c.label.label("given")
        ).add_columns(*columns)
        query = query.join(captured_answers, captured_answers.c.name == judge_ratings.c.answer)
        query = query.join(feedback, feedback.c.answer == judge_ratings.c.answer)
        query = query.where(*_of(judge), _is(RatingState.RATED), judge_ratings.c.version == judge.spec.version)
        found: dict[str, tuple[bool, bool]] = {}
        with translate_database_errors(), self._reads.connect() as connection:
            excluded, salt = set(quarantined(connection)), salt_of(connection)
            for row in connection.execute(query.order_by(feedback.c.feedback_id)).mappings():
                if excluded and {row["api_key"], person_of(row, salt)} & excluded:
                    continue
                value = value_of(Metric.ACCEPTED, row["given"], row)
                if value is not None:
                    found[row["answer"]] = value > 0, row["judged"] > 0
        return [found[answer] for answer in sorted(found)]

    def verdict(self, judge: ModelJudge) -> Verdict | None:
        """See the port."""
        query = select(judge_checks).where(*_checks_of(judge))
        with translate_database_errors(), self._reads.connect() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else Verdict(row["version"], row["passed"])

    def decide(self, judge: ModelJudge, passed: bool, entry: AuditEntry, now: datetime) -> None:
        """See the port."""
        values = {
            "model": judge.model,
            "judge": judge.spec.name,
            "version": judge.spec.version,
            "passed": passed,
            "check_time": now,
        }
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, "judge checks")
            connection.execute(delete(judge_checks).where(*_checks_of(judge)))
            connection.execute(insert(judge_checks).values(values))
            add(connection, [entry])

    def page(self, model: str, judge: str, answer: str, before: str, limit: int) -> Sequence[JudgeRating]:
        """See the port."""
        query = select(judge_ratings).order_by(judge_ratings.c.answer.desc(), judge_ratings.c.judge)
        for column, value in (("model", model), ("judge", judge), ("answer", answer)):
            if value:
                query = query.where(judge_ratings.c[column] == value)
        if before:
            last, _, name = before.partition("/")
            here = judge_ratings.c.answer == f"answers/{last}"
            query = query.where((judge_ratings.c.answer < f"answers/{last}") | (here & (judge_ratings.c.judge > name)))
        with translate_database_errors(), self._reads.connect() as connection:
            return [rating_of(row) for row in connection.execute(query.limit(limit)).mappings()]


def _of(judge: ModelJudge) -> tuple[Any, ...]:
    return judge_ratings.c.model == judge.model, judge_ratings.c.judge == judge.spec.name


def _checks_of(judge: ModelJudge) -> tuple[Any, ...]:
    return judge_checks.c.model == judge.model, judge_checks.c.judge == judge.spec.name


def _is(state: RatingState) -> Any:
    return judge_ratings.c.state == state.value


def _settle(connection: Connection, judge: ModelJudge, answer: str, values: dict[str, Any]) -> bool:
    """Changes a rating that waits; False if it is gone or settled."""
    where = (*_of(judge), judge_ratings.c.answer == answer, _is(RatingState.PENDING))
    return connection.execute(update(judge_ratings).where(*where).values(values)).rowcount > 0


def _day(judge: ModelJudge, now: datetime) -> tuple[Any, ...]:
    return (
        judge_usage.c.model == judge.model,
        judge_usage.c.judge == judge.spec.name,
        judge_usage.c.day == now.date().isoformat(),
    )


def _usage(connection: Connection, judge: ModelJudge, now: datetime) -> dict[str, int]:
    row = connection.execute(select(judge_usage).where(*_day(judge, now))).mappings().first()
    return {name: int(row[name]) if row is not None else 0 for name in ("calls", "tokens", "over_limit")}


def _lock_usage(connection: Connection, judge: ModelJudge) -> None:
    one_at_a_time(connection, f"judge usage {judge.name}")


def _count(connection: Connection, judge: ModelJudge, now: datetime, **added: int) -> None:
    _lock_usage(connection, judge)
    values = {name: judge_usage.c[name] + count for name, count in added.items()}
    if connection.execute(update(judge_usage).where(*_day(judge, now)).values(values)).rowcount:
        return
    day = {"model": judge.model, "judge": judge.spec.name, "day": now.date().isoformat()}
    connection.execute(insert(judge_usage).values({**day, "calls": 0, "tokens": 0, "over_limit": 0, **added}))
