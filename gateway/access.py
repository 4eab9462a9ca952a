"""The role that each call needs: one table for gRPC methods, one for HTTP routes.

A key with one of the named roles may make the call; `admin` may make every call. A call that is in neither table is
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from gateway.keys.key import ApiKey, Role
from services.kit.errors import PermissionDeniedError

_OPEN: frozenset[Role] | None = None
"""No key is needed."""
_ANY = frozenset(Role)
_SEE = frozenset({Role.READ, Role.OPERATE})
# Clients look up a model before they use it.
_LOOK = frozenset({Role.READ, Role.PREDICT, Role.OPERATE})
_ASK = frozenset({Role.PREDICT})
_JUDGE = frozenset({Role.PREDICT, Role.INGEST})
_SEND = frozenset({Role.INGEST})
_RUN = frozenset({Role.OPERATE})

Roles = frozenset[Role] | None
"""Roles of which a key needs one; None if no key is required."""

_SERVICES: Mapping[str, Mapping[str, Roles]] = {
    "tidemill.ingest.v1.IngestService": {
        "IngestRecords": _SEND,
        "StreamRecords": _SEND,
        "CreateImport": _RUN,
        "CancelImport": _RUN,
        "GetImport": _SEE,
        "ListImports": _SEE,
        "WatchImport": _SEE,
    },
    # They show what was refused, personal data included.
    "tidemill.ingest.v1.DeadLetterService": {
        "GetDeadLetter": _RUN,
        "ListDeadLetters": _RUN,
        "ReplayDeadLetters": _RUN,
        "DropDeadLetters": _RUN,
    },
    "tidemill.ingest.v1.SourceService": {
        "PutSource": _RUN,
        "GetSource": _SEE,
        "ListSources": _SEE,
        "PauseSource": _RUN,
        "ResumeSource": _RUN,
        "DeleteSource": _RUN,
        "CollectSource": _RUN,
    },
    "tidemill.cleaning.v1.CleaningService": {
        "CleanText": frozenset({Role.READ, Role.INGEST, Role.OPERATE}),
        "CountRecords": _SEE,
        "GetRecord": _SEE,
        # It shows originals, personal data included.
        "ExplainRecord": _RUN,
        "PutDataset": _RUN,
        "GetDataset": _SEE,
        "ListDatasets": _SEE,
        "BuildDatasetVersion": _RUN,
        "CancelDatasetVersion": _RUN,
        "GetDatasetVersion": _SEE,
        "GetDatasetCard": _SEE,
        "SampleRejections": _SEE,
        "ListDatasetVersions": _SEE,
        "WatchDatasetVersion": _SEE,
    },
    "tidemill.training.v1.TrainingService": {
        "CreateTrial": _RUN,
        "CancelRun": _RUN,
        "GetRun": _SEE,
        "ListRuns": _SEE,
        "WatchRun": _SEE,
        "PlanTraining": _SEE,
        "AdviseTraining": _SEE,
    },
    "tidemill.inference.v1.InferenceService": {
        "Predict": _ASK,
        "Embed": _ASK,
        "Generate": _ASK,
        "StreamGenerate": _ASK,
        "GetModel": _LOOK,
        "ListModels": _LOOK,
        "ListModelVersions": _LOOK,
        "GetRoute": _LOOK,
        "ListRoutes": _LOOK,
        "SetRoute": _RUN,
        "PromoteVersion": _RUN,
        "SetCascade": _RUN,
        "RollBackModel": _RUN,
        "UnpublishModel": _RUN,
    },
    "tidemill.pipeline.v1.PipelineService": {
        "CreateCycle": _RUN,
        "CancelCycle": _RUN,
        "GetCycle": _SEE,
        "ListCycles": _SEE,
        "WatchCycle": _SEE,
        "RecordFeedback": _JUDGE,
        "BatchRecordFeedback": _JUDGE,
        "ListFeedback": _SEE,
        # They show what people asked, masked.
        "GetCapturedAnswer": _RUN,
        "ListCapturedAnswers": _RUN,
    },
    "tidemill.pipeline.v1.TriggerService": {
        "PutTrigger": _RUN,
        "GetTrigger": _SEE,
        "ListTriggers": _SEE,
        "PauseTrigger": _RUN,
        "ResumeTrigger": _RUN,
        # An alert may start a cycle.
        "ReportAlerts": _RUN,
    },
    "tidemill.pipeline.v1.RolloutService": {
        "GetRollout": _SEE,
        "ListRollouts": _SEE,
        "WatchRollout": _SEE,
        "ListAuditEntries": _SEE,
        "ApproveRollout": _RUN,
        "RollBackRollout": _RUN,
        "FreezeRollout": _RUN,
        "ResumeRollout": _RUN,
        "ForceRollout": _RUN,
    },
    # They show what people asked, masked, and a decision teaches the next model.
    "tidemill.pipeline.v1.ReviewService": {
        "ListReviews": _RUN,
        "TakeReview": _RUN,
        "SubmitReview": _RUN,
        "MeasureAgreement": _SEE,
    },
    "tidemill.pipeline.v1.JudgeService": {
        # It shows addresses of judges, and no key.
        "ListJudges": _SEE,
        # Reasons may quote answers.
        "ListJudgeRatings": _RUN,
    },
    "tidemill.pipeline.v1.ExclusionService": {
        "QuarantineFeedback": _RUN,
        "LiftQuarantine": _RUN,
        # It deletes for good, and orders cycles.
        "EraseUser": _RUN,
        "ListExclusions": _SEE,
    },
    "tidemill.telemetry.v1.TelemetryService": {"SearchLogs": _SEE, "GetTrace": _SEE, "SearchTraces": _SEE},
    "inference.GRPCInferenceService": {
        "ServerLive": _OPEN,
        "ServerReady": _OPEN,
        "ServerMetadata": _LOOK,
        "ModelReady": _LOOK,
        "ModelMetadata": _LOOK,
        "ModelConfig": _LOOK,
        "ModelStatistics": _LOOK,
        "ModelInfer": _ASK,
        "ModelStreamInfer": _ASK,
    },
    "grpc.health.v1.Health": {"Check": _OPEN, "Watch": _OPEN},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": _ANY},
}

METHODS: Mapping[str, Roles] = {
    f"/{service}/{method}": roles for service, methods in _SERVICES.items() for method, roles in methods.items()
}
"""By path, such as `/tidemill.ingest.v1.IngestService/IngestRecords`."""

_V2 = "/v2/models/{model}"
ROUTES: Mapping[tuple[str, str], Roles] = {
    ("GET", "/healthz"): _OPEN,
    ("GET", "/v2/health/live"): _OPEN,
    ("GET", "/v2/health/ready"): _OPEN,
    # Open to whoever has the metrics token or, if none is set, calls from this machine; others need a key.
    ("GET", "/metrics"): _SEE,
    ("POST", "/v1/chat/completions"): _ASK,
    ("POST", "/v1/completions"): _ASK,
    ("POST", "/v1/responses"): _ASK,
    ("GET", "/v1/models"): _LOOK,
    ("GET", "/v1/models/{model}"): _LOOK,
    ("GET", "/v1/models/{model}/versions/{version}"): _LOOK,
    ("POST", "/v1/predict"): _ASK,
    # A tenant's files have its texts.
    ("POST", "/v1/files"): _ASK,
    ("GET", "/v1/files"): _ASK,
    ("GET", "/v1/files/{file_id}"): _ASK,
    ("DELETE", "/v1/files/{file_id}"): _ASK,
    ("GET", "/v1/files/{file_id}/content"): _ASK,
    ("POST", "/v1/batches"): _ASK,
    ("GET", "/v1/batches"): _ASK,
    ("GET", "/v1/batches/{batch_id}"): _ASK,
    ("POST", "/v1/batches/{batch_id}/cancel"): _ASK,
    ("POST", "/v1/embeddings"): _ASK,
    ("POST", "/v1/feedback"): _JUDGE,
    ("POST", "/v1/feedback/batch"): _JUDGE,
    ("POST", "/v1/records"): _SEND,
    ("POST", "/v1/alerts"): _RUN,
    ("GET", "/v2"): _LOOK,
    ("GET", "/v2/models/stats"): _LOOK,
    **{
        ("GET", f"{_V2}{version}{what}"): _LOOK
        for version in ("", "/versions/{version}")
        for what in ("", "/ready", "/config", "/stats")
    },
    ("POST", f"{_V2}/infer"): _ASK,
    ("POST", f"{_V2}/versions/{{version}}/infer"): _ASK,
}
"""By method and path template. The pages of the API documentation need no key."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of the current request."""

    key: ApiKey

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The caller's identity for the services, as gRPC metadata."""
        tenant = (("x-tidemill-tenant", self.key.tenant),) if self.key.tenant else ()
        return (("x-tidemill-key", self.key.key_id), *tenant)


CALLER: ContextVar[Caller | None] = ContextVar("tidemill_caller", default=None)
"""None if the gateway requires no keys."""

BACKGROUND: ContextVar[bool] = ContextVar("tidemill_background", default=False)
"""Whether no one waits for the current request: others come first."""
TIER, FLEX = "x-service-tier", "flex"
"""Header, and metadata, by which a caller says so; any other value is without effect."""


def demand(key: ApiKey, roles: Roles, what: str) -> None:
    """Checks a call against the table.

    Args:
        key: the caller's.
        roles: from the table; None if no key is needed.
        what: the call, for the message.

    Raises:
        PermissionDeniedError: the key has none of the roles; the message names them.
    """
    if roles is None or key.allows(roles):
        return
    names = sorted(roles - {Role.ADMIN})
    wanted = f"the role {' or '.join(names)}" if names else "a role that is not in the tables"
    raise PermissionDeniedError(
        f"{what} needs {wanted}; the API key {key.key_id} has {', '.join(sorted(key.roles)) or 'none'}. "
        "`tidemill keys create --role` creates a key with other roles.",
        reason="ROLE_MISSING",
        metadata={"roles": ",".join(names), "api_key": key.key_id},
    )
