"""Servers that answer at once, in a process of their own: OpenAI's chat over HTTP, and Triton's stream over gRPC."""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from tritonclient.grpc import service_pb2 as v2

ANSWER = "Rates rise again"


class _Chat(asyncio.Protocol):
    """Answers each request on a connection; reads no more of it than where it ends."""

    _read = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        while end and len(body) >= (size := _length(head)):
            self._transport.write(_RESPONSE)
            self._read = body[size:]
            head, end, body = self._read.partition(b"\r\n\r\n")


def _length(head: bytes) -> int:
    found = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
    return int(found or 0)


_BODY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "mock",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
).encode()
_RESPONSE = (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_BODY)) + _BODY


async def _infer(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    async for _ in requests:
        yield _PIECE


def _piece() -> bytes:
    response: Any = v2.ModelInferResponse(model_name="mock", model_version="1")
    for name, raw in (
        ("text_delta", struct.pack("<I", len(ANSWER)) + ANSWER.encode()),
        ("finish_reason", struct.pack("<I", 4) + b"stop"),
        ("prompt_tokens", struct.pack("<i", 7)),
        ("completion_tokens", struct.pack("<i", 3)),
    ):
        response.outputs.add(name=name)
        response.raw_output_contents.append(raw)
    return bytes(v2.ModelStreamInferResponse(infer_response=response).SerializeToString())


_PIECE = _piece()


async def _serve(http: int, rpc: int) -> None:
    server = grpc.aio.server()
    handlers: dict[str, Any] = {"ModelStreamInfer": grpc.stream_stream_rpc_method_handler(_infer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    server.add_insecure_port(f"127.0.0.1:{rpc}")
    await server.start()
    chat = await asyncio.get_running_loop().create_server(_Chat, "127.0.0.1", http)
    await chat.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("http", type=int)
    parser.add_argument("grpc", type=int)
    ports = parser.parse_args()
    uvloop.run(_serve(ports.http, ports.grpc))
