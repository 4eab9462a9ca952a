"""Counts and figures of roll-outs, in the service's database.

Counts of calls are added up as they arrive. Users and the metric are computed from single calls and the feedback on
them, so that feedback counts whenever it comes, and a repeated event changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from services.kit.storage.database import one_at_a_time, read_only, translate_database_errors
from services.pipeline.adapters.lessons import quarantined, salt_of
from services.pipeline.adapters.rollout_rows import rollout_of
from services.pipeline.adapters.rollout_tables import rollout_calls, rollout_counts, rollouts
from services.pipeline.adapters.rows import capture_of
from services.pipeline.adapters.tables import capture_policies, feedback, judge_checks, judge_ratings
from services.pipeline.app.rollout_ports import Call, Outcome
from services.pipeline.domain.feedback import Signal
from services.pipeline.domain.judge import RatingState
from services.pipeline.domain.learning import pseudonym_of
from services.pipeline.domain.rollout import Rollout
from services.pipeline.domain.rollout_plan import Metric
from services.pipeline.engine.rollout_figures import ArmFigures, CallCounts, RolloutFigures, bucket_of
from services.pipeline.engine.sequential import Sample

_NO_STEP = -1
_KEY = ("rollout_id", "step", "candidate")

Key = tuple[str, int, bool]


class SqlRolloutMetrics:
    """Implements `RolloutMetrics` of `services.pipeline.app.rollout_ports`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._reads = engine, read_only(engine)

    def count(self, calls: Sequence[Call]) -> None:
        """See the port."""
        by_model = self._running()
        rows = {call.answer: row for call in calls if (row := _row(call, by_model.get(call.model))) is not None}
        if not rows:
            return
        outcomes = {call.answer: call for call in calls}
        with translate_database_errors(), self._engine.begin() as connection:
            one_at_a_time(connection, "rollout calls")
            query = select(rollout_calls.c.answer).where(rollout_calls.c.answer.in_(list(rows)))
            known = set(connection.execute(query).scalars())
            new = [row for answer, row in rows.items() if answer not in known]
            if not new:
                return
            connection.execute(insert(rollout_calls), new)
            added: dict[Key, CallCounts] = defaultdict(CallCounts)
            for row in new:
                added[row["rollout_id"], row["step"], row["candidate"]] += _counted(outcomes[row["answer"]])
            for key, counts in added.items():
                _add(connection, key, counts)

    def calls(self, rollout: Rollout) -> RolloutFigures:
        """See the port."""
        with translate_database_errors(), self._reads.connect() as connection:
            champion, candidate = _counts(connection, rollout)
        return RolloutFigures(champion, candidate)

    def figures(self, rollout: Rollout) -> RolloutFigures:
        """See the port."""
        metric = rollout.plan.comparison.metric
        with translate_database_errors(), self._reads.connect() as connection:
            counts = _counts(connection, rollout)
            users = {row.candidate: row.users for row in connection.execute(_users(rollout))}
            unusable = ""
            if metric is Metric.JUDGED:
                values, unusable = _by_judge(connection, rollout)
            else:
                values = _latencies(connection, rollout) if metric is Metric.LATENCY else _judged(connection, rollout)
        champion, candidate = (
            ArmFigures(counts[arm].step, counts[arm].whole, users.get(bool(arm), 0), _sample(values[bool(arm)]))
            for arm in (0, 1)
        )
        return RolloutFigures(champion, candidate, unusable)

    def forget(self, rollout: Rollout) -> None:
        """See the port."""
        with translate_database_errors(), self._engine.begin() as connection:
            connection.execute(delete(rollout_calls).where(rollout_calls.c.rollout_id == rollout.rollout_id))

    def _running(self) -> Mapping[str, Rollout]:
        with translate_database_errors(), self._reads.connect() as connection:
            rows = connection.execute(select(rollouts).where(rollouts.c.at_work.is_not(None))).mappings()
            return {row["model"]: rollout_of(row) for row in rows}


def value_of(metric: Metric, given: str, said: Mapping[Any, Any]) -> float | None:
    """The value of a judgement for a metric of people's opinion; None if it has none.

    Args:
        metric: ACCEPTED or RATING.
        given: the label that the model answered; empty for a model that writes.
        said: the row of the judgement.
    """
    rating = float(said["rating"])
    if metric is Metric.RATING and rating:
        return rating
    accepted: bool | None = None
    if said["label"] or said["correction"]:
        accepted = bool(given) and said["label"] == given
    elif said["signal"]:
        accepted = said["signal"] == Signal.ACCEPTED.value
    elif rating:
        accepted = rating > 0
    if accepted is None:
        return None
    return float(accepted) if metric is Metric.ACCEPTED else (1.0 if accepted else -1.0)


def _row(call: Call, rollout: Rollout | None) -> dict[str, Any] | None:
    if rollout is None or call.model_version not in (rollout.champion, rollout.candidate):
        return None
    in_step = call.route_etag in rollout.record.etags
    return {
        "answer": call.answer,
        "rollout_id": rollout.rollout_id,
        "step": rollout.step if in_step else _NO_STEP,
        "candidate": call.model_version == rollout.candidate,
        "unit": str(call.user_slot) if call.user_slot else call.answer,
        "latency_ms": call.latency_ms if call.outcome is Outcome.ANSWERED else None,
        "label": call.label,
    }


def _counted(call: Call) -> CallCounts:
    return CallCounts(
        calls=1,
        errors=int(call.outcome is Outcome.FAILED),
        refusals=int(call.outcome is Outcome.REFUSED),
        latencies={bucket_of(call.latency_ms): 1} if call.outcome is Outcome.ANSWERED else {},
    )


def _add(connection: Connection, key: Key, counts: CallCounts) -> None:
    same = [rollout_counts.c[name] == value for name, value in zip(_KEY, key, strict=True)]
    row = connection.execute(select(rollout_counts).where(*same)).mappings().first()
    now = (_counts_of(row) if row is not None else CallCounts()) + counts
    values: dict[str, Any] = {"calls": now.calls, "errors": now.errors, "refusals": now.refusals}
    values |= {"latencies": {str(bucket): count for bucket, count in now.latencies.items()}}
    if row is None:
        connection.execute(insert(rollout_counts).values({**dict(zip(_KEY, key, strict=True)), **values}))
    else:
        connection.execute(update(rollout_counts).where(*same).values(values))


def _counts_of(row: Mapping[Any, Any]) -> CallCounts:
    latencies = {int(bucket): count for bucket, count in row["latencies"].items()}
    return CallCounts(row["calls"], row["errors"], row["refusals"], latencies)


def _counts(connection: Connection, rollout: Rollout) -> tuple[ArmFigures, ArmFigures]:
    """The counts of the champion and of the candidate."""
    query = select(rollout_counts).where(rollout_counts.c.rollout_id == rollout.rollout_id)
    step, whole = [CallCounts(), CallCounts()], [CallCounts(), CallCounts()]
    for row in connection.execute(query).mappings():
        arm, counts = int(row["candidate"]), _counts_of(row)
        whole[arm] += counts
        if row["step"] == rollout.step:
            step[arm] += counts
    return ArmFigures(step[0], whole[0]), ArmFigures(step[1], whole[1])


def _in_step(rollout: Rollout) -> Any:
    return (rollout_calls.c.rollout_id == rollout.rollout_id) & (rollout_calls.c.step == rollout.step)


def _users(rollout: Rollout) -> Any:
    query = select(rollout_calls.c.candidate, func.count(rollout_calls.c.unit.distinct()).label("users"))
    return query.where(_in_step(rollout)).group_by(rollout_calls.c.candidate)


def _latencies(connection: Connection, rollout: Rollout) -> Mapping[bool, Iterable[float]]:
    """Mean latency of each user who was answered, by arm."""
    answered = rollout_calls.c.latency_ms.is_not(None)
    query = select(rollout_calls.c.candidate, func.avg(rollout_calls.c.latency_ms).label("mean"))
    query = query.where(_in_step(rollout), answered).group_by(rollout_calls.c.candidate, rollout_calls.c.unit)
    found: dict[bool, list[float]] = {False: [], True: []}
    for row in connection.execute(query):
        found[row.candidate].append(row.mean)
    return found


def _judged(connection: Connection, rollout: Rollout) -> Mapping[bool, Iterable[float]]:
    """Mean of each user's judged answers, by arm; of several judgements of an answer the last one counts.

    What a quarantined person or API key says does not count, neither before nor after the quarantine.
    """
    excluded, salt = quarantined(connection), salt_of(connection)
    said = ("rating", "signal", "correction", "label", "author", "tenant", "api_key")
    columns = [feedback.c[name] for name in said]
    query = select(
        rollout_calls.c.candidate, rollout_calls.c.unit, rollout_calls.c.answer, rollout_calls.c.label.label("given")
    ).add_columns(*columns)
    query = query.join(feedback, feedback.c.answer == rollout_calls.c.answer).where(_in_step(rollout))
    last: dict[str, tuple[bool, str, float]] = {}
    for row in connection.execute(query.order_by(feedback.c.feedback_id)).mappings():
        if excluded and {row["api_key"], person_of(row, salt)} & set(excluded):
            continue
        value = value_of(rollout.plan.comparison.metric, row["given"], row)
        if value is not None:
            last[row["answer"]] = row["candidate"], row["unit"], value
    return _means(last.values())


def _by_judge(connection: Connection, rollout: Rollout) -> tuple[Mapping[bool, Iterable[float]], str]:
    """Mean of each user's answers as a judge rates them, by arm; none, and why, while the judge may not decide."""
    name = rollout.plan.comparison.judge
    policy = select(capture_policies.c.capture).where(capture_policies.c.model == rollout.model)
    row = connection.execute(policy).first()
    judges = capture_of(row.capture).judges if row is not None else ()
    version = next((judge.version for judge in judges if judge.name == name), "")
    named = (judge_checks.c.model == rollout.model, judge_checks.c.judge == name, judge_checks.c.version == version)
    check = connection.execute(select(judge_checks.c.passed).where(*named)).first()
    if check is None or not check.passed:
        return _means(()), f"the judge {name} is not checked against people, so it does not decide"
    rated = (judge_ratings.c.judge == name, judge_ratings.c.version == version)
    query = select(rollout_calls.c.candidate, rollout_calls.c.unit, judge_ratings.c.rating)
    query = query.join(judge_ratings, judge_ratings.c.answer == rollout_calls.c.answer)
    query = query.where(_in_step(rollout), *rated, judge_ratings.c.state == RatingState.RATED.value)
    return _means((bool(arm), unit, rating) for arm, unit, rating in connection.execute(query)), ""


def _means(values: Iterable[tuple[bool, str, float]]) -> Mapping[bool, Iterable[float]]:
    """The mean of each user's values, by arm; a value comes with its arm and its user."""
    by_user: dict[tuple[bool, str], Sample] = defaultdict(Sample)
    for candidate, unit, value in values:
        by_user[candidate, unit] = by_user[candidate, unit].add(value)
    found: dict[bool, list[float]] = {False: [], True: []}
    for (candidate, _), sample in by_user.items():
        found[candidate].append(sample.mean)
    return found


def person_of(said: Mapping[Any, Any], salt: bytes) -> str:
    """The pseudonym of the person or key that gave a judgement, from the judgement's row."""
    kind, who = ("author", said["author"]) if said["author"] else ("key", said["api_key"])
    return pseudonym_of(kind, said["tenant"], who, salt)


def _sample(values: Iterable[float]) -> Sample:
    found = Sample()
    for value in values:
        found = found.add(value)
    return found
