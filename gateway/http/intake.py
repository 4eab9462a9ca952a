"""`/v1/feedback`, `/v1/records` and `/v1/alerts`: what flows back into the pipelines."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from google.protobuf.timestamp_pb2 import Timestamp
from starlette.responses import Response
from tidemill.ingest.v1.ingest_service_pb2 import IngestRecordsRequest
from tidemill.ingest.v1.record_pb2 import Record
from tidemill.pipeline.v1.pipeline_service_pb2 import (
    BatchRecordFeedbackRequest,
    Feedback,
    Judgement,
    RecordFeedbackRequest,
)
from tidemill.pipeline.v1.trigger_pb2 import Alert
from tidemill.pipeline.v1.trigger_service_pb2 import ReportAlertsRequest

from gateway.http.bodies import (
    AlertmanagerAlert,
    AlertsBody,
    AlertsResponse,
    FeedbackBatchBody,
    FeedbackBatchResponse,
    FeedbackBody,
    FeedbackResponse,
    RecordBody,
    RecordsBody,
    RecordsResponse,
    described,
    read_body,
)
from gateway.http.calls import invalid, json_of, json_response
from gateway.peers import Peers, call_metadata
from services.kit.grpc.errors import translate_rpc_errors
from services.kit.ids import new_id

_FEEDBACK_DOCS = described(FeedbackBody, "Records a judgement of an answer")
_FEEDBACK_BATCH_DOCS = described(FeedbackBatchBody, "Records judgements of several answers, all or none")
_ALERTS_DOCS = described(AlertsBody, "Takes alerts of Prometheus from Alertmanager's webhook, for triggers")
_RECORDS_DOCS = described(RecordsBody, "Accepts a batch of raw records; answers when it is durable")
_TIMEOUT_S = 30.0
_MAX_SUMMARY = 512
UNKNOWN_ANSWER = (
    "No answer with this id is known yet. The feedback is stored and counts as soon as its answer is known; "
    "check the id if that takes longer than a minute."
)


def intake_routes(peers: Peers) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Loop"])

    @router.post("/v1/feedback", response_model=FeedbackResponse, **_FEEDBACK_DOCS)
    async def feedback(request: Request) -> Response:
        body = read_body(FeedbackBody, await json_of(request))
        call = RecordFeedbackRequest(request_id=_request_id(request), **_judgement(body))
        with translate_rpc_errors("pipeline"):
            response = await peers.pipeline.RecordFeedback(call, timeout=_TIMEOUT_S, metadata=call_metadata())
        answer = _recorded(response.feedback)
        return json_response(answer.model_dump(exclude_none=True), 202 if answer.warning else 200)

    @router.post("/v1/feedback/batch", response_model=FeedbackBatchResponse, **_FEEDBACK_BATCH_DOCS)
    async def feedback_batch(request: Request) -> Response:
        body = read_body(FeedbackBatchBody, await json_of(request))
        call = BatchRecordFeedbackRequest(
            request_id=_request_id(request),
            judgements=[Judgement(request_id=item.request_id, **_judgement(item)) for item in body.judgements],
        )
        with translate_rpc_errors("pipeline"):
            response = await peers.pipeline.BatchRecordFeedback(call, timeout=_TIMEOUT_S, metadata=call_metadata())
        answer = FeedbackBatchResponse(feedback=[_recorded(item) for item in response.feedback])
        return json_response(answer.model_dump(exclude_none=True))

    @router.post("/v1/alerts", response_model=AlertsResponse, **_ALERTS_DOCS)
    async def alerts(request: Request) -> Response:
        body = read_body(AlertsBody, await json_of(request))
        found = [_alert(item, f"alerts[{index}]") for index, item in enumerate(body.alerts) if _is_ours(item)]
        call = ReportAlertsRequest(request_id=_request_id(request), alerts=found)
        with translate_rpc_errors("pipeline"):
            response = await peers.trigger.ReportAlerts(call, timeout=_TIMEOUT_S, metadata=call_metadata())
        answer = AlertsResponse(taken=response.taken_count, received=len(body.alerts))
        return json_response(answer.model_dump())

    @router.post("/v1/records", response_model=RecordsResponse, **_RECORDS_DOCS)
    async def records(request: Request) -> Response:
        body = read_body(RecordsBody, await json_of(request))
        call = IngestRecordsRequest(
            request_id=body.request_id or _request_id(request),
            records=[_record(record, f"records[{index}]") for index, record in enumerate(body.records)],
        )
        with translate_rpc_errors("ingest"):
            response = await peers.ingest.IngestRecords(call, timeout=_TIMEOUT_S, metadata=call_metadata())
        return json_response(RecordsResponse(record_ids=list(response.record_ids)).model_dump())

    return router


def _judgement(body: FeedbackBody) -> dict[str, Any]:
    """The fields that a single judgement and one of a batch have in common."""
    return {
        "answer": body.answer if body.answer.startswith("answers/") else f"answers/{body.answer}",
        "rating": body.rating or 0.0,
        "correction": body.correction,
        "author": body.author,
        "label": body.label,
        "comment": body.comment,
        "episode": body.episode,
        "signal": f"FEEDBACK_SIGNAL_{body.signal.upper() or 'UNSPECIFIED'}",
    }


def _recorded(item: Feedback) -> FeedbackResponse:
    return FeedbackResponse(
        name=item.name,
        answer=item.answer,
        rating=item.rating,
        correction=item.correction,
        author=item.author,
        model_version=item.model_version,
        label=item.label,
        # Answers become known by an event, which may arrive after a quick judgement.
        warning=None if item.model_version else UNKNOWN_ANSWER,
    )


def _request_id(request: Request) -> str:
    return request.headers.get("idempotency-key") or new_id()


def _is_ours(body: AlertmanagerAlert) -> bool:
    """Whether it concerns a pipeline: a mesh reports others, too, and Alertmanager sends what it is set to."""
    return bool(body.labels.get("pipeline") and body.labels.get("alertname"))


def _alert(body: AlertmanagerAlert, where: str) -> Alert:
    said = body.annotations.get("summary") or body.annotations.get("description") or ""
    return Alert(
        name=body.labels["alertname"],
        pipeline=f"pipelines/{body.labels['pipeline'].removeprefix('pipelines/')}",
        fingerprint=body.fingerprint,
        start_time=_moment(body.startsAt, f"{where}.startsAt"),
        resolved=body.status == "resolved",
        summary=said[:_MAX_SUMMARY],
    )


def _moment(text: str, where: str) -> Timestamp:
    stamp = Timestamp()
    try:
        stamp.FromJsonString(text)
    except ValueError as error:
        raise invalid(where, f"`{where}` must be an RFC 3339 time.") from error
    return stamp


def _record(body: RecordBody, where: str) -> Record:
    """One record of a batch; the service validates it."""
    record = Record(record_id=body.record_id, source=body.source, text=body.text, attributes=body.attributes)
    if moment := body.event_time:
        record.event_time.CopyFrom(_moment(moment, f"{where}.event_time"))
    return record
