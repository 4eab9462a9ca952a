"""Callers who hang up, many at once: their work ends, and nothing of it is left behind in the process."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from tidemill.inference.v1.inference_service_pb2 import GenerateRequest, StreamGenerateRequest
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from tests.integration.gateway.conftest import Mesh
from tests.waiting import wait_for

CALLERS = 300


def hang_up(mesh: Mesh, number: int) -> None:
    """Asks for an answer that takes a minute, in one of the ways there are, and leaves."""
    stream = number % 2 == 0
    body = json.dumps(
        {"model": "headlines", "stream": stream, "messages": [{"role": "user", "content": "wait"}]}
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {mesh.key}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    host, _, port = mesh.http.partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode() + body)
        if stream and number % 4 == 0:
            connection.recv(100)
        elif number % 3 == 0:
            time.sleep(0.05 * (number % 5))


def hang_up_rpc(mesh: Mesh, stub: Any, number: int) -> None:
    metadata = (("x-api-key", mesh.key),)
    if number % 2:
        call = stub.Generate.future(GenerateRequest(model="models/headlines", text="wait"), metadata=metadata)
    else:
        call = stub.StreamGenerate(StreamGenerateRequest(model="models/headlines", text="wait"), metadata=metadata)
        if number % 4 == 0:
            next(call)
    time.sleep(0.01 * (number % 7))
    call.cancel()


def test_callers_who_hang_up_leave_nothing_behind(mesh: Mesh, caplog: pytest.LogCaptureFixture) -> None:
    async def tasks() -> int:
        return len(asyncio.all_tasks())

    before = mesh.run(tasks())
    with caplog.at_level(logging.DEBUG), ThreadPoolExecutor(30) as pool:
        list(pool.map(lambda number: hang_up(mesh, number), range(CALLERS)))
        with grpc.insecure_channel(mesh.grpc) as channel:
            stub = InferenceServiceStub(channel)
            list(pool.map(lambda number: hang_up_rpc(mesh, stub, number), range(CALLERS)))
        wait_for(lambda: mesh.run(tasks()), lambda count: count <= before, "the end of all tasks")

        async def collect() -> None:
            gc.collect()

        mesh.run(collect())
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert not errors, errors[:5]
