"""Requests with a `request_id`: a repeat is answered as the first one was, in every service alike.

Responses outlive the process. A use case that creates a resource also stores the id with it, in the same transaction:
the process may be killed after the resource was created and before its response is kept here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakValueDictionary

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from services.kit.errors import request_id_reused
from services.kit.grpc.interceptors import Continuation
from services.kit.ids import sha256_hex


@dataclass(frozen=True, slots=True)
class RecordedResponse:
    """A request's digest, and the bytes of its response."""

    digest: str
    response: bytes


class RequestLog(Protocol):
    """Where responses are kept. Thread-safe."""

    def find(self, request_id: str) -> RecordedResponse | None:
        """The response to the earlier request with this id; None if there was none."""
        ...

    def keep(self, request_id: str, recorded: RecordedResponse) -> None:
        """Keeps a response.

        Raises:
            AbortedError: another process answered the same request at the same time.
        """
        ...


class RequestIdInterceptor(grpc.aio.ServerInterceptor):
    """Answers repeats of unary calls from the log; runs inside ErrorInterceptor and ValidationInterceptor."""

    def __init__(self, log: RequestLog, *, kept_elsewhere: Collection[str] = ()) -> None:
        """`kept_elsewhere` are methods whose use case keeps all that a repeat needs."""
        self._log = log
        self._kept_elsewhere = frozenset(kept_elsewhere)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Wraps the handler of one call."""
        handler = await continuation(details)
        service, _, method = details.method.lstrip("/").rpartition("/")
        if (
            handler is None
            or handler.request_streaming
            or handler.response_streaming
            or not service.startswith("tidemill.")
            or method in self._kept_elsewhere
        ):
            return handler
        behaviour: Any = handler.unary_unary

        async def call(request: Message, context: Any) -> Any:
            request_id = getattr(request, "request_id", "")
            if not request_id:
                return await behaviour(request, context)
            digest = sha256_hex(details.method, request.SerializeToString(deterministic=True))
            # A repeat that comes while the first is running waits for its answer.
            async with self._locks.setdefault(request_id, asyncio.Lock()):
                known = await asyncio.to_thread(self._log.find, request_id)
                if known is None:
                    response = await behaviour(request, context)
                    recorded = RecordedResponse(digest, response.SerializeToString())
                    await asyncio.to_thread(self._log.keep, request_id, recorded)
                    return response
            if known.digest != digest:
                raise request_id_reused(request_id, "request")
            found: Any = descriptor_pool.Default().FindMethodByName(f"{service}.{method}")
            return message_factory.GetMessageClass(found.output_type).FromString(known.response)

        return grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
