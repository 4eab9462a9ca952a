"""Quarantines and erasures in the service's database."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, and_, delete, func, insert, select, update

from services.kit.ids import new_id
from services.kit.pseudonyms import user_key, user_pseudonym
from services.kit.storage.database import forget_deleted, in_parts, one_at_a_time, read_only, translate_database_errors
from services.pipeline.adapters.audit_store import add
from services.pipeline.adapters.late_arrivals import note_erased
from services.pipeline.adapters.lessons import JOIN, learn, salt_of
from services.pipeline.adapters.rows import cycle_of, spec_row
from services.pipeline.adapters.tables import (
    capture_policies,
    captured_answers,
    cycles,
    exclusions,
    feedback,
    judge_ratings,
    lessons,
    metadata,
    pending_erasures,
    review_decisions,
    review_items,
    taught,
    trigger_firings,
)
from services.pipeline.app.exclusions import PendingErasure
from services.pipeline.domain.audit import MESH, AuditEntry
from services.pipeline.domain.audit import entry as audit_entry
from services.pipeline.domain.exclusion import Exclusion, ExclusionKind
from services.pipeline.domain.learning import pseudonym_of

_REQUESTS = metadata.tables["answered_requests"]
_ERASED = "What a person gave was erased."


class SqlExclusionStore:
    """Implements `services.pipeline.app.exclusions.ExclusionStore`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def person_of(self, author: str, tenant: str) -> str:
        """See the port."""
        with translate_database_errors(), self._reads.connect() as connection:
            return pseudonym_of("author", tenant, author, salt_of(connection))

    def add(self, exclusion: Exclusion, actor: str) -> Exclusion:
        """See the port."""
        holds = (
            exclusions.c.kind == exclusion.kind.value,
            exclusions.c.api_key == exclusion.api_key,
            exclusions.c.person == exclusion.person,
            exclusions.c.lift_time.is_(None),
        )
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, "exclusions")
            known = connection.execute(select(exclusions).where(*holds)).mappings().first()
            if known is not None:
                return _exclusion(known)
            connection.execute(insert(exclusions).values(_row(exclusion)))
            why = exclusion.reason or "A person quarantined it and gave no reason."
            add(connection, [_entry(exclusion, actor, "feedback.quarantine", exclusion.create_time, why)])
            return exclusion

    def lift(self, exclusion: Exclusion, actor: str) -> None:
        """See the port."""
        holds = (exclusions.c.exclusion_id == exclusion.exclusion_id, exclusions.c.lift_time.is_(None))
        assert exclusion.lift_time is not None
        entry = _entry(exclusion, actor, "feedback.lift", exclusion.lift_time, "A person lifted the quarantine.")
        with translate_database_errors(), self._engine.begin() as connection:
            if connection.execute(update(exclusions).where(*holds).values(lift_time=exclusion.lift_time)).rowcount:
                add(connection, [entry])

    def erase(self, exclusion: Exclusion, author: str, tenant: str, actor: str) -> Exclusion:
        """See the port."""
        theirs = (feedback.c.author == author, feedback.c.tenant == tenant)
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, JOIN)
            rows = connection.execute(select(feedback.c.feedback_id, feedback.c.answer).where(*theirs)).all()
            judged = {row.answer for row in rows}
            # What a reviewer judged was asked by someone else.
            reviewed = select(review_decisions.c.answer).where(review_decisions.c.reviewer == author)
            asked = judged - set(connection.execute(reviewed).scalars())
            # What they asked goes with all that others said of it, whether or not they judged it.
            user = user_pseudonym(user_key(salt_of(connection)), tenant, author)
            own = select(captured_answers.c.name).where(captured_answers.c.asked_by == user)
            of_others = (feedback.c.answer.in_(own), ~and_(*theirs))
            said = connection.execute(select(feedback.c.feedback_id).where(*of_others)).scalars().all()
            through_others = select(lessons.c.model).where(lessons.c.answer.in_(own)).distinct()
            models = set(connection.execute(through_others).scalars())
            asked |= set(connection.execute(own).scalars())
            learnt = select(func.count()).select_from(lessons).where(lessons.c.person == exclusion.person)
            removed = {
                "lessons": connection.execute(learnt).scalar_one(),
                "feedback": connection.execute(delete(feedback).where(*theirs)).rowcount,
                "reviews": _delete(connection, review_decisions, review_decisions.c.reviewer, [author]),
            }
            removed["feedback"] += _delete(connection, feedback, feedback.c.feedback_id, said)
            # Those that others have judged as well are taught by them.
            connection.execute(delete(lessons).where(lessons.c.person == exclusion.person))
            learn(connection, judged)
            note_erased(connection, asked, exclusion.create_time)
            removed["answers"] = _delete(connection, captured_answers, captured_answers.c.name, asked)
            for table in (review_items, review_decisions, judge_ratings):
                _delete(connection, table, table.c.answer, asked)
            _delete(connection, lessons, lessons.c.answer, asked)
            gone = [*(row.feedback_id for row in rows), *said]
            _forget_responses(connection, [f"feedback/{feedback_id}".encode() for feedback_id in gone])
            left = {"exclusion_id": exclusion.exclusion_id, "records": sorted(asked), "done": 0}
            connection.execute(insert(pending_erasures).values(left))
            ordered = _order_cycles(connection, exclusion, models)
            made = replace(exclusion, removed=removed, ordered=ordered)
            connection.execute(insert(exclusions).values({**_row(made), "asked_by": user}))
            why = made.reason or "A person asked to be forgotten."
            facts = {name: str(count) for name, count in removed.items()} | {"ordered": ", ".join(ordered)}
            add(connection, [_entry(made, actor, "feedback.erase", made.create_time, why, **facts)])
            return made

    def pending(self) -> Sequence[PendingErasure]:
        """See the port."""
        joined = select(exclusions, pending_erasures.c.records, pending_erasures.c.done).join(
            pending_erasures, pending_erasures.c.exclusion_id == exclusions.c.exclusion_id
        )
        with translate_database_errors(), self._reads.connect() as connection:
            rows = connection.execute(joined.order_by(exclusions.c.exclusion_id)).mappings()
            return [PendingErasure(_exclusion(row), tuple(row["records"]), row["done"]) for row in rows]

    def carried_out(self, exclusion: Exclusion) -> None:
        """See the port."""
        ours = pending_erasures.c.exclusion_id == exclusion.exclusion_id
        where = (exclusions.c.exclusion_id == exclusion.exclusion_id, exclusions.c.complete_time.is_(None))
        values = {"rewritten": list(exclusion.rewritten), "complete_time": exclusion.complete_time}
        # What this service deleted is still in the log of its database.
        forget_deleted(self._engine)
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, "exclusions")
            if not connection.execute(update(exclusions).where(*where).values(values)).rowcount:
                return
            if exclusion.complete_time is None:
                connection.execute(update(pending_erasures).where(ours).values(done=pending_erasures.c.done + 1))
                return
            connection.execute(delete(pending_erasures).where(ours))
            why = "What the person taught is gone from the records and the data sets of cleaning."
            facts = {"rewritten": ", ".join(exclusion.rewritten)}
            add(connection, [_entry(exclusion, MESH, "feedback.erased", exclusion.complete_time, why, **facts)])

    def get(self, exclusion_id: str) -> Exclusion | None:
        """See the port."""
        return next(iter(self._read(select(exclusions).where(exclusions.c.exclusion_id == exclusion_id))), None)

    def page(self, before: str, limit: int) -> Sequence[Exclusion]:
        """See the port."""
        query = select(exclusions).order_by(exclusions.c.exclusion_id.desc()).limit(limit)
        return self._read(query.where(exclusions.c.exclusion_id < before) if before else query)

    def taught(self, api_key: str, person: str) -> Sequence[tuple[str, int]]:
        """See the port."""
        whose = taught.c.api_key == api_key if api_key else taught.c.person == person
        query = select(taught.c.cycle, func.sum(taught.c.records)).where(whose).group_by(taught.c.cycle)
        with translate_database_errors(), self._reads.connect() as connection:
            found = [(str(cycle), int(count)) for cycle, count in connection.execute(query)]
        return sorted(found, key=lambda item: item[0].rpartition("/")[2], reverse=True)

    def _read(self, query: Any) -> list[Exclusion]:
        with translate_database_errors(), self._reads.connect() as connection:
            return [_exclusion(row) for row in connection.execute(query).mappings()]


def _delete(connection: Connection, table: Any, column: Any, values: Collection[str]) -> int:
    return sum(connection.execute(delete(table).where(column.in_(part))).rowcount for part in in_parts(values))


def _forget_responses(connection: Connection, names: Sequence[bytes]) -> None:
    """Empties the stored responses that carry erased feedback; a late repeat gets an empty one and records nothing."""
    rows = connection.execute(select(_REQUESTS.c.request_id, _REQUESTS.c.response)) if names else ()
    for request_id, response in list(rows):
        if any(name in response for name in names):
            where = _REQUESTS.c.request_id == request_id
            connection.execute(update(_REQUESTS).where(where).values(response=b""))


def _order_cycles(connection: Connection, exclusion: Exclusion, models: Collection[str]) -> tuple[str, ...]:
    """Orders a cycle of each pipeline that learnt from the person, as its newest cycle ran; triggers carry it out.

    `models` are those that others taught by what the person asked.
    """
    found = select(taught.c.pipeline).where(taught.c.person == exclusion.person).distinct()
    through_others = select(capture_policies.c.pipeline).where(
        capture_policies.c.model.in_(list(models)), capture_policies.c.pipeline.in_(select(taught.c.pipeline))
    )
    pipelines = sorted({*connection.execute(found).scalars(), *connection.execute(through_others).scalars()})
    for pipeline in pipelines:
        newest = select(cycles).where(cycles.c.pipeline == pipeline).order_by(cycles.c.cycle_id.desc()).limit(1)
        row = connection.execute(newest).mappings().first()
        if row is not None:
            order = {
                "request_id": f"erase-{new_id()}",
                "pipeline": pipeline,
                "fire_time": exclusion.create_time,
                "reasons": [_ERASED],
                "spec": spec_row(cycle_of(row).spec),
                "cycle": "",
                "error": "",
            }
            connection.execute(insert(trigger_firings).values(order))
    return tuple(pipelines)


def _entry(exclusion: Exclusion, actor: str, action: str, now: datetime, why: str, **facts: str) -> AuditEntry:
    """An entry that names a person by pseudonym only: the trail is never deleted."""
    whose = {"api_key": exclusion.api_key, "person": exclusion.person}
    known = {name: value for name, value in whose.items() if value}
    return audit_entry(now, actor, action, exclusion.name, why, {**known, **facts})


def _row(exclusion: Exclusion) -> dict[str, Any]:
    return {
        "exclusion_id": exclusion.exclusion_id,
        "kind": exclusion.kind.value,
        "create_time": exclusion.create_time,
        "api_key": exclusion.api_key,
        "person": exclusion.person,
        "reason": exclusion.reason,
        "removed": dict(exclusion.removed),
        "ordered": list(exclusion.ordered),
        "lift_time": exclusion.lift_time,
        "rewritten": list(exclusion.rewritten),
        "complete_time": exclusion.complete_time,
    }


def _exclusion(row: Mapping[Any, Any]) -> Exclusion:
    return Exclusion(
        exclusion_id=row["exclusion_id"],
        kind=ExclusionKind(row["kind"]),
        create_time=row["create_time"],
        api_key=row["api_key"],
        person=row["person"],
        reason=row["reason"],
        removed=row["removed"],
        ordered=tuple(row["ordered"]),
        lift_time=row["lift_time"],
        rewritten=tuple(row["rewritten"]),
        complete_time=row["complete_time"],
    )
