"""`/v1/feedback` and `/v1/records`: what flows back into the loop."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from google.protobuf.timestamp_pb2 import Timestamp
from starlette.responses import Response
from tidemill.ingest.v1.ingest_service_pb2 import IngestRecordsRequest
from tidemill.ingest.v1.record_pb2 import Record
from tidemill.pipeline.v1.pipeline_service_pb2 import RecordFeedbackRequest

from gateway.http.calls import invalid, json_of, json_response, number_field, refuse_unknown, text_field
from gateway.http.schemas import FEEDBACK_DOCS, RECORDS_DOCS
from gateway.peers import Peers, call_metadata
from services.kit.grpc.errors import translate_rpc_errors
from services.kit.ids import new_id

_FEEDBACK = frozenset({"answer", "rating", "correction", "author"})
_BATCH = frozenset({"records", "request_id"})
_RECORD = frozenset({"record_id", "source", "text", "attributes", "event_time"})
_TIMEOUT_S = 30.0
UNKNOWN_ANSWER = (
    "No answer of this id is known yet. The feedback is kept and counts as soon as its answer is known; "
    "check the id if that is not within a minute."
)


def intake_routes(peers: Peers) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Loop"])

    @router.post("/v1/feedback", **FEEDBACK_DOCS)
    async def feedback(request: Request) -> Response:
        body = await json_of(request)
        refuse_unknown(body, _FEEDBACK)
        answer = text_field(body, "answer", required=True)
        call = RecordFeedbackRequest(
            request_id=_request_id(request),
            answer=answer if answer.startswith("answers/") else f"answers/{answer}",
            rating=number_field(body, "rating", None, -1.0, 1.0),
            correction=text_field(body, "correction"),
            author=text_field(body, "author"),
        )
        with translate_rpc_errors("pipeline"):
            response = await peers.pipeline.RecordFeedback(call, timeout=_TIMEOUT_S, metadata=call_metadata())
        recorded = response.feedback
        told = {
            "name": recorded.name,
            "answer": recorded.answer,
            "rating": recorded.rating,
            "correction": recorded.correction,
            "author": recorded.author,
            "model_version": recorded.model_version,
        }
        if recorded.model_version:
            return json_response(told)
        # Answers become known by an event, which may come after a quick judgement.
        return json_response(told | {"warning": UNKNOWN_ANSWER}, 202)

    @router.post("/v1/records", **RECORDS_DOCS)
    async def records(request: Request) -> Response:
        body = await json_of(request)
        refuse_unknown(body, _BATCH)
        given = body.get("records")
        if not isinstance(given, list) or not 1 <= len(given) <= 1000:
            raise invalid("records", "`records` must be a list of 1 to 1000 records.")
        call = IngestRecordsRequest(
            request_id=text_field(body, "request_id") or _request_id(request),
            records=[_record(record, f"records[{index}]") for index, record in enumerate(given)],
        )
        with translate_rpc_errors("ingest"):
            response = await peers.ingest.IngestRecords(call, timeout=_TIMEOUT_S, metadata=call_metadata())
        return json_response({"record_ids": list(response.record_ids)})

    return router


def _request_id(request: Request) -> str:
    return request.headers.get("idempotency-key") or new_id()


def _record(value: Any, where: str) -> Record:
    """One record of a batch; the service holds it against the contract's rules."""
    if not isinstance(value, dict):
        raise invalid(where, f"`{where}` must be an object.")
    for name in value:
        if name not in _RECORD:
            raise invalid(
                f"{where}.{name}", f"`{where}.{name}` is not known; a record has {', '.join(sorted(_RECORD))}."
            )
    for name in ("record_id", "source", "text", "event_time"):
        if value.get(name) is not None and not isinstance(value[name], str):
            raise invalid(f"{where}.{name}", f"`{where}.{name}` must be a string.")
    attributes = value.get("attributes") or {}
    if not isinstance(attributes, dict) or not all(isinstance(item, str) for item in attributes.values()):
        raise invalid(f"{where}.attributes", f"`{where}.attributes` must be an object of strings.")
    record = Record(
        record_id=value.get("record_id") or "",
        source=value.get("source") or "",
        text=value.get("text") or "",
        attributes=attributes,
    )
    if moment := value.get("event_time"):
        stamp = Timestamp()
        try:
            stamp.FromJsonString(moment)
        except ValueError as error:
            raise invalid(f"{where}.event_time", f"`{where}.event_time` must be an RFC 3339 time.") from error
        record.event_time.CopyFrom(stamp)
    return record
