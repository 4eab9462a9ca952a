"""`/v1/batches` and `/v1/files`: requests in a file, answered in the background; and how a batch asks a route."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from opentelemetry.trace import SpanKind, Tracer
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import FileResponse, Response

from gateway.access import CALLER
from gateway.batches.objects import KEEP_S, Batch, FileObject
from gateway.batches.runner import Reply
from gateway.batches.store import BatchStore
from gateway.http.batch_bodies import MAX_PAGE, BatchBody, BatchList, FileDeleted, FileList, UploadBody
from gateway.http.bodies import described, read_body
from gateway.http.body import LEASE_KEY, body_of
from gateway.http.calls import invalid, json_of, json_response
from gateway.http.door import App, Message
from gateway.http.limits import BodyBudget
from services.kit.errors import InvalidArgumentError
from services.kit.telemetry import schema

logger = logging.getLogger(__name__)

_MAX_FIELDS = 8
_MAX_NAME = 255
_UPLOAD_DOCS: dict[str, Any] = {
    "summary": "Uploads the requests of a batch: JSON lines with custom_id, method, url and body",
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "file": {"type": "string", "format": "binary"},
                            "purpose": {"type": "string", "enum": ["batch"]},
                            "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                            "expires_after[seconds]": {"type": "integer"},
                        },
                        "required": ["file", "purpose"],
                    }
                }
            },
        }
    },
}


class JsonLines(FileResponse):
    """A file of JSON lines."""

    media_type = "application/jsonl"


def batch_routes(store: BatchStore, made: asyncio.Event) -> APIRouter:
    """The routes; `made` is set when a batch was made or cancelled."""
    router = APIRouter(tags=["Batches"])

    @router.post("/v1/files", response_model=FileObject, **_UPLOAD_DOCS)
    async def upload(request: Request) -> Response:
        form = await _form(request)
        file = form.pop("file", None)
        if not isinstance(file, UploadFile):
            raise invalid("file", "`file` must be a file.")
        try:
            body = read_body(UploadBody, form)
            name, size = (file.filename or "batch.jsonl")[:_MAX_NAME], file.size or 0
            keep_s = body.expires_after.seconds if body.expires_after is not None else KEEP_S
            found = await asyncio.to_thread(store.put_file, _tenant(), name, file.file, size, keep_s)
        finally:
            await file.close()
        return json_response(found.model_dump())

    @router.get("/v1/files", response_model=FileList, summary="Lists files, newest first")
    async def list_files(request: Request) -> Response:
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise invalid("order", "`order` must be asc or desc.")
        limit, after = _page(request, 10_000, 10_000)
        purpose = request.query_params.get("purpose", "")
        data, more = await asyncio.to_thread(store.list_files, _tenant(), order, after, limit, purpose)  # type: ignore[arg-type]
        return json_response(
            FileList(data=list(data), first_id=_id(data[:1]), last_id=_id(data[-1:]), has_more=more).model_dump()
        )

    @router.get("/v1/files/{file_id}/content", response_class=JsonLines, summary="The content of a file")
    async def content(file_id: str) -> Response:
        return JsonLines(await asyncio.to_thread(store.content_of, _tenant(), file_id))

    @router.get("/v1/files/{file_id}", response_model=FileObject, summary="A file")
    async def get_file(file_id: str) -> Response:
        return json_response((await asyncio.to_thread(store.get_file, _tenant(), file_id)).model_dump())

    @router.delete("/v1/files/{file_id}", response_model=FileDeleted, summary="Deletes a file")
    async def delete_file(file_id: str) -> Response:
        await asyncio.to_thread(store.delete_file, _tenant(), file_id)
        return json_response(FileDeleted(id=file_id).model_dump())

    @router.post("/v1/batches", response_model=Batch, **described(BatchBody, "Makes a batch of an uploaded file"))
    async def create(request: Request) -> Response:
        body, caller = read_body(BatchBody, await json_of(request)), CALLER.get()
        after = body.output_expires_after
        found = await asyncio.to_thread(
            store.create_batch,
            _tenant(),
            caller.key.key_id if caller is not None else "",
            body.input_file_id,
            body.endpoint,
            body.metadata,
            after.seconds if after is not None else KEEP_S,
        )
        made.set()
        return json_response(found.model_dump())

    @router.get("/v1/batches", response_model=BatchList, summary="Lists batches, newest first")
    async def list_batches(request: Request) -> Response:
        limit, after = _page(request, 20, MAX_PAGE)
        data, more = await asyncio.to_thread(store.list_batches, _tenant(), after, limit)
        return json_response(
            BatchList(data=list(data), first_id=_id(data[:1]), last_id=_id(data[-1:]), has_more=more).model_dump()
        )

    @router.get("/v1/batches/{batch_id}", response_model=Batch, summary="A batch, with how far it is")
    async def get_batch(batch_id: str) -> Response:
        return json_response((await asyncio.to_thread(store.get_batch, _tenant(), batch_id)).model_dump())

    @router.post("/v1/batches/{batch_id}/cancel", response_model=Batch, summary="Ends a batch; its answers stay")
    async def cancel(batch_id: str) -> Response:
        found = await asyncio.to_thread(store.cancel_batch, _tenant(), batch_id)
        made.set()
        return json_response(found.model_dump())

    return router


def _tenant() -> str:
    caller = CALLER.get()
    return caller.key.tenant if caller is not None else ""


async def _form(request: Request) -> dict[str, Any]:
    """The fields of a form.

    Raises:
        InvalidArgumentError: the body is not a form.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise InvalidArgumentError("The body must be multipart/form-data.", reason="INVALID_FORM")
    data = await body_of(request)

    async def once() -> AsyncGenerator[bytes, None]:
        yield bytes(data)

    try:
        form = await MultiPartParser(request.headers, once(), max_files=1, max_fields=_MAX_FIELDS).parse()
    except (MultiPartException, KeyError) as error:
        raise InvalidArgumentError(f"The body is not a valid form: {error}", reason="INVALID_FORM") from error
    return dict(form)


def _page(request: Request, usual: int, most: int) -> tuple[int, str]:
    text = request.query_params.get("limit", str(usual))
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= most):
        raise invalid("limit", f"`limit` must be a number from 1 to {most}.")
    return int(text), request.query_params.get("after", "")


def _id(items: Sequence[Batch] | Sequence[FileObject]) -> str | None:
    return items[0].id if items else None


class RouteCaller:
    """Asks a route of this process as a caller of HTTP would, behind the checks of keys and their rates."""

    def __init__(self, routes: App, bodies: BodyBudget, tracer: Tracer) -> None:
        """Args:
        routes: the application behind the door.
        bodies: the memory of all current bodies.
        tracer: creates a span for each request.
        """
        self._routes, self._bodies, self._tracer = routes, bodies, tracer

    async def __call__(self, path: str, body: bytes) -> Reply:
        """Sends a body; the present caller's role counts."""
        status, headers, parts = 500, {}, []
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()  # a caller who stays
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = {key.decode().lower(): value.decode("latin-1") for key, value in message["headers"]}
            else:
                parts.append(message.get("body", b""))

        lease = self._bodies.lease()
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": path,
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            LEASE_KEY: lease,
        }
        with self._tracer.start_as_current_span(f"batch {path}", kind=SpanKind.INTERNAL) as span:
            span.set_attribute(schema.HTTP_ROUTE, path)
            try:
                await self._routes(scope, receive, send)
            except Exception:
                # Raised again behind its response, for a server's log.
                logger.exception("a request of a batch failed unexpectedly")
            finally:
                lease.give_back()
            span.set_attribute(schema.HTTP_STATUS, status)
            trace_id = f"{span.get_span_context().trace_id:032x}"
        wait = headers.get("retry-after-ms")
        body_sent = b"".join(parts) or b"null"
        return Reply(status, body_sent, trace_id, float(wait) / 1000 if wait else None)
