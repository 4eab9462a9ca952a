"""Which answers wait for which judge: written in the transaction that stores the answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, insert

from services.pipeline.adapters.tables import judge_ratings
from services.pipeline.domain.capture import CapturedAnswer
from services.pipeline.domain.judge import JudgeRating, JudgeSpec, RatingState


def ask(connection: Connection, answers: Iterable[CapturedAnswer], judges: Mapping[str, Sequence[JudgeSpec]]) -> None:
    """Has judges rate answers that have just been stored.

    Args:
        connection: with the transaction.
        answers: new ones.
        judges: by model.
    """
    rows = [
        {
            "answer": answer.name,
            "judge": judge.name,
            "model": answer.model,
            "version": "",
            "state": RatingState.PENDING.value,
            "rating": 0.0,
            "reason": "",
            "attempts": 0,
            "create_time": answer.answer_time,
            "due_time": answer.answer_time,
            "rate_time": None,
        }
        for answer in answers
        for judge in judges.get(answer.model, ())
        if judge.takes(answer.name)
    ]
    if rows:
        connection.execute(insert(judge_ratings), rows)


def rating_of(row: Mapping[Any, Any]) -> JudgeRating:
    """The rating of a row."""
    return JudgeRating(
        answer=row["answer"],
        model=row["model"],
        judge=row["judge"],
        version=row["version"],
        state=RatingState(row["state"]),
        rating=row["rating"],
        reason=row["reason"],
        attempts=row["attempts"],
        rate_time=row["rate_time"],
    )
