"""The queue of answers to review, and what was decided, in the service's database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, and_, case, exists, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from services.kit.errors import AbortedError
from services.kit.storage.database import one_at_a_time, read_only, translate_database_errors
from services.pipeline.adapters.rows import capture_of, captured_of, feedback_of
from services.pipeline.adapters.tables import (
    capture_policies,
    captured_answers,
    feedback,
    judge_ratings,
    review_decisions,
    review_items,
)
from services.pipeline.domain.judge import RatingState
from services.pipeline.domain.review import Action, Decision, Need, Review, ReviewState, need_of, wanted_of

_LOCK = "reviews"
_QUEUED = review_items.join(captured_answers, captured_answers.c.name == review_items.c.answer)
_OPEN = review_items.c.done < review_items.c.wanted


def queue(connection: Connection, answers: Collection[str]) -> None:
    """Puts the answers that need a review into the queue, or raises their priority there.

    Call it in the transaction that stored an answer or a judgement, with the lock `JOIN`.
    """
    where = captured_answers.c.name.in_(list(answers))
    captured = [captured_of(row) for row in connection.execute(select(captured_answers).where(where)).mappings()]
    rows = connection.execute(select(capture_policies)).mappings()
    rules = {row["model"]: rule for row in rows if (rule := capture_of(row["capture"]).review) is not None}
    captured = [answer for answer in captured if answer.model in rules]
    if not captured:
        return
    names = [answer.name for answer in captured]
    said = defaultdict(list)
    for row in connection.execute(select(feedback).where(feedback.c.answer.in_(names))).mappings():
        said[row["answer"]].append(feedback_of(row))
    rated = defaultdict(list)
    held = select(judge_ratings.c.answer, judge_ratings.c.rating).where(judge_ratings.c.answer.in_(names))
    for name, rating in connection.execute(held.where(judge_ratings.c.state == RatingState.RATED.value)):
        rated[name].append(rating)
    query = select(review_items.c.answer, review_items.c.priority).where(review_items.c.answer.in_(names))
    known = {row.answer: row.priority for row in connection.execute(query)}
    for answer in captured:
        need = need_of(answer, rules[answer.model], said[answer.name], rated[answer.name])
        if need is None or known.get(answer.name, 0) >= need.priority:
            continue
        values = {"need": need.value, "priority": need.priority}
        if answer.name in known:
            connection.execute(update(review_items).where(review_items.c.answer == answer.name).values(values))
        else:
            item: dict[str, Any]
            wanted = wanted_of(answer, rules[answer.model])
            minutes = rules[answer.model].lease_minutes
            item = {"answer": answer.name, "model": answer.model, "wanted": wanted, "done": 0, "reviewer": ""}
            item |= {"lease_end": None, "lease_minutes": minutes, **values}
            connection.execute(insert(review_items).values(item))


class SqlReviewStore:
    """Implements `services.pipeline.app.review_ports.ReviewStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def get(self, answer: str) -> Review | None:
        """See the port."""
        with translate_database_errors(), self._reads.connect() as connection:
            return _one(connection, answer)

    def page(self, model: str, state: ReviewState | None, before: str, limit: int, now: datetime) -> Sequence[Review]:
        """See the port."""
        query = select(review_items, captured_answers).select_from(_QUEUED).order_by(review_items.c.answer.desc())
        taken = and_(review_items.c.reviewer != "", review_items.c.lease_end > now)
        match state:
            case ReviewState.DONE:
                query = query.where(~_OPEN)
            case ReviewState.TAKEN:
                query = query.where(_OPEN, taken)
            case ReviewState.PENDING:
                query = query.where(_OPEN, or_(review_items.c.reviewer == "", review_items.c.lease_end <= now))
            case None:
                pass
        if model:
            query = query.where(review_items.c.model == model)
        if before:
            query = query.where(review_items.c.answer < f"answers/{before}")
        with translate_database_errors(), self._reads.connect() as connection:
            return _reviews(connection, query.limit(limit))

    def take(self, model: str, reviewer: str, now: datetime) -> Review | None:
        """See the port."""
        mine = and_(review_items.c.reviewer == reviewer, review_items.c.lease_end > now)
        free = or_(review_items.c.reviewer == "", review_items.c.lease_end <= now, mine)
        by_me = exists().where(
            review_decisions.c.answer == review_items.c.answer, review_decisions.c.reviewer == reviewer
        )
        query = select(review_items.c.answer, review_items.c.lease_minutes).select_from(_QUEUED)
        query = query.where(_OPEN, free, ~by_me)
        if model:
            query = query.where(review_items.c.model == model)
        first = (case((mine, 0), else_=1), review_items.c.priority.desc(), review_items.c.answer.desc())
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, _LOCK)
            row = connection.execute(query.order_by(*first).limit(1)).first()
            if row is None:
                return None
            end = now + timedelta(minutes=row.lease_minutes)
            where = review_items.c.answer == row.answer
            connection.execute(update(review_items).where(where).values(reviewer=reviewer, lease_end=end))
            return _one(connection, row.answer)

    def decide(self, answer: str, decision: Decision) -> Review:
        """See the port."""
        where = review_items.c.answer == answer
        row = {
            "answer": answer,
            "reviewer": decision.reviewer,
            "action": decision.action.value,
            "target": decision.target,
            "comment": decision.comment,
            "time": decision.time,
            "feedback": decision.feedback,
        }
        try:
            with translate_database_errors(), self._engine.begin() as connection:
                one_at_a_time(connection, _LOCK)
                skipped = decision.action is Action.SKIP
                connection.execute(insert(review_decisions).values(row))
                done = review_items.c.done + (0 if skipped else 1)
                connection.execute(update(review_items).where(where).values(done=done, reviewer="", lease_end=None))
                found = _one(connection, answer)
        except IntegrityError as error:
            raise AbortedError(f"{decision.reviewer} decides about {answer} at the same time. Retry.") from error
        assert found is not None
        return found

    def doubly(self, model: str) -> Sequence[Review]:
        """See the port."""
        query = select(review_items, captured_answers).select_from(_QUEUED).where(review_items.c.done >= 2)
        query = query.where(review_items.c.model == model) if model else query
        with translate_database_errors(), self._reads.connect() as connection:
            return _reviews(connection, query.order_by(review_items.c.answer))

    def counts(self, model: str) -> tuple[int, int]:
        """See the port."""
        query = select(_OPEN, func.count()).select_from(_QUEUED).group_by(_OPEN)
        query = query.where(review_items.c.model == model) if model else query
        with translate_database_errors(), self._reads.connect() as connection:
            found = {bool(is_open): count for is_open, count in connection.execute(query)}
        return found.get(True, 0), found.get(False, 0)


def _one(connection: Connection, answer: str) -> Review | None:
    query = select(review_items, captured_answers).select_from(_QUEUED).where(review_items.c.answer == answer)
    return next(iter(_reviews(connection, query)), None)


def _reviews(connection: Connection, query: Any) -> list[Review]:
    rows = list(connection.execute(query).mappings())
    names = [row[review_items.c.answer] for row in rows]
    decided = select(review_decisions).where(review_decisions.c.answer.in_(names)).order_by(review_decisions.c.time)
    decisions: dict[str, list[Decision]] = defaultdict(list)
    for row in connection.execute(decided).mappings():
        decisions[row["answer"]].append(_decision(row))
    return [_review(row, decisions[row[review_items.c.answer]]) for row in rows]


def _review(row: Mapping[Any, Any], decisions: Sequence[Decision]) -> Review:
    return Review(
        answer=captured_of({column.name: row[column] for column in captured_answers.c}),
        need=Need(row[review_items.c.need]),
        wanted=row[review_items.c.wanted],
        decisions=tuple(decisions),
        reviewer=row[review_items.c.reviewer],
        lease_end=row[review_items.c.lease_end],
    )


def _decision(row: Mapping[Any, Any]) -> Decision:
    return Decision(row["reviewer"], Action(row["action"]), row["target"], row["comment"], row["time"], row["feedback"])
