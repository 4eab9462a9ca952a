"""Judges of the contract to domain objects and back."""

from __future__ import annotations

from dataclasses import asdict

from tidemill.common.v1.failure_pb2 import Metric
from tidemill.pipeline.v1 import judge_pb2 as pb

from services.kit.grpc.messages import timestamp
from services.pipeline.app.judges import JudgeView
from services.pipeline.domain.judge import (
    DEFAULT_CALLS_PER_DAY,
    DEFAULT_MAX_TOKENS,
    DEFAULT_MIN_COMMON,
    DEFAULT_MIN_KAPPA,
    DEFAULT_TIMEOUT_S,
    ClassifierJudge,
    JudgeKind,
    JudgeRating,
    JudgeRules,
    JudgeSpec,
    LanguageModelJudge,
    RatingState,
)

_STATES = {
    RatingState.PENDING: pb.JudgeRating.STATE_PENDING,
    RatingState.RATED: pb.JudgeRating.STATE_RATED,
    RatingState.FAILED: pb.JudgeRating.STATE_FAILED,
    RatingState.OVER_LIMIT: pb.JudgeRating.STATE_OVER_LIMIT,
}


def judge_from(message: pb.JudgeSpec) -> JudgeSpec:
    """A judge; what is empty has the default that the contract gives it."""
    return JudgeSpec(
        name=message.name,
        kind=_kind_from(message),
        sample=message.sample if message.HasField("sample") else 1.0,
        max_calls_per_day=message.max_calls_per_day or DEFAULT_CALLS_PER_DAY,
        max_tokens_per_day=message.max_tokens_per_day,
        timeout_s=message.timeout_s or DEFAULT_TIMEOUT_S,
        min_common=message.min_common if message.HasField("min_common") else DEFAULT_MIN_COMMON,
        min_kappa=message.min_kappa if message.HasField("min_kappa") else DEFAULT_MIN_KAPPA,
    )


def _kind_from(message: pb.JudgeSpec) -> JudgeKind:
    match message.WhichOneof("kind"):
        case "classifier":
            one = message.classifier
            return ClassifierJudge(one.address, one.model, tuple(one.good_labels), one.key_env)
        case "language_model":
            model = message.language_model
            tokens = model.max_tokens or DEFAULT_MAX_TOKENS
            return LanguageModelJudge(
                model.address, model.model, model.instructions, model.key_env, tokens, model.plain
            )
        case _:
            rules = message.rules
            return JudgeRules(
                json=rules.json,
                min_chars=rules.min_chars,
                max_chars=rules.max_chars,
                matches=rules.matches,
                forbids=rules.forbids,
                no_personal_data=rules.no_personal_data,
                language=rules.language,
            )


def judge_to(judge: JudgeSpec) -> pb.JudgeSpec:
    """A judge as a message."""
    message = pb.JudgeSpec(
        name=judge.name,
        sample=judge.sample,
        max_calls_per_day=judge.max_calls_per_day,
        max_tokens_per_day=judge.max_tokens_per_day,
        timeout_s=judge.timeout_s,
        min_common=judge.min_common,
        min_kappa=judge.min_kappa,
    )
    match judge.kind:
        case JudgeRules():
            message.rules.CopyFrom(pb.JudgeRules(**asdict(judge.kind)))
        case ClassifierJudge():
            message.classifier.CopyFrom(pb.JudgeClassifier(**asdict(judge.kind)))
        case LanguageModelJudge():
            message.language_model.CopyFrom(pb.JudgeLanguageModel(**asdict(judge.kind)))
    return message


def view_to(view: JudgeView) -> pb.Judge:
    """A judge with its figures as a message."""
    tally, standing = view.tally, view.standing
    message = pb.Judge(
        name=view.judge.name,
        spec=judge_to(view.judge.spec),
        pipeline=f"pipelines/{view.judge.pipeline}",
        rated=tally.rated,
        good_share=tally.good / tally.rated if tally.rated else 0.0,
        pending=tally.pending,
        failed=tally.failed,
        over_limit=tally.over_limit,
        calls_today=tally.calls_today,
        tokens_today=tally.tokens_today,
        common=standing.common,
        observed=standing.observed,
        checked=view.check.passed,
        why=view.check.why,
        error=view.error,
    )
    if standing.kappa is not None:
        value, low, high = standing.kappa
        kappa = Metric(name="cohen_kappa", value=value, ci_low=low, ci_high=high, sample_size=standing.common)
        message.kappa.CopyFrom(kappa)
    return message


def rating_to(rating: JudgeRating) -> pb.JudgeRating:
    """A rating as a message."""
    message = pb.JudgeRating(
        answer=rating.answer,
        judge=f"{rating.model}/judges/{rating.judge}",
        state=_STATES[rating.state],
        rating=rating.rating,
        reason=rating.reason,
    )
    if rating.rate_time is not None:
        message.rate_time.CopyFrom(timestamp(rating.rate_time))
    return message
