"""One spell of full load on every door, and what must be true after it."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
from tidemill.cleaning.v1 import cleaning_service_pb2 as pb
from tidemill.cleaning.v1.cleaning_service_pb2_grpc import CleaningServiceStub
from tidemill.inference.v1.inference_service_pb2 import StreamGenerateRequest
from tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from infra.stack.state import StackState
from tests.load.caller import DATASET, SOURCE, WRITER
from tests.load.callers import BUSY, DOORS, Load
from tests.load.small_models import publish_small_models
from tests.load.watch import Logs, answered_endpoints, ended, memory, processes
from tests.waiting import wait_until

_MAX_MEBIBYTES = 3072
_GROWTH_MEBIBYTES = 256


def prepare_mesh(stack: StackState, key: str, scratch: Path) -> None:
    """Gives the mesh what the callers ask for: two models, and a data set that takes their records."""
    metadata = (("authorization", f"Bearer {key}"),)
    with grpc.insecure_channel(stack.address("gateway")) as channel:
        request = pb.PutDatasetRequest(name=DATASET)
        request.spec.sources.append(SOURCE)
        for name in ("fix_unicode", "strip_html", "normalize_whitespace", "mask_pii"):
            request.spec.operators.add(name=name)
        request.spec.operators.add(name="length_filter").params.update({"min_chars": 10})
        CleaningServiceStub(channel).PutDataset(request, metadata=metadata, timeout=60)
    publish_small_models(stack, scratch)


def full_load(stack: StackState, key: str, folder: Path, seconds: float, callers: int = 2, pause_s: float = 0) -> Load:
    """Load for some time: every process lives on, none grows without end, none complains, every door answers.

    A door answers where the gateway has counted an answer of everything that it calls.
    """
    before, logs = processes(stack), Logs(stack)
    load = Load(stack, key, folder, callers=callers, pause_s=pause_s)
    with load.running():
        _keep_up(seconds / 2)
        halfway = memory(stack)
        _keep_up(seconds / 2)
        wait_until(lambda: all(load.answered().values()), "an answer at every door")
        after = memory(stack)
    assert load.defects == {}
    assert ended(stack, before) == []
    called = {endpoint for door in DOORS.values() for endpoint in door.endpoints}
    assert {each for each in called - answered_endpoints(stack) if "/" in each} == set(), "never answered"
    grown = {name: (halfway[name], now) for name, now in after.items() if now - halfway[name] > _GROWTH_MEBIBYTES}
    assert grown == {}
    assert {name: now for name, now in after.items() if now > _MAX_MEBIBYTES} == {}
    assert logs.errors() == []
    return load


def _keep_up(seconds: float) -> None:
    """The load itself is measured in time; what is judged is the state that it leaves."""
    time.sleep(seconds)


def hang_ups(stack: StackState, key: str, folder: Path, callers: int) -> None:
    """Callers who leave in the middle of their streams, half over HTTP and half over gRPC, leave nothing behind."""
    before, logs = processes(stack), Logs(stack)
    body = httpx.Request("POST", "http://x/", json=_long_chat()).read()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()
    host, _, port = stack.address("gateway_http").partition(":")

    def by_http(_: int) -> None:
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(head + body)
            connection.recv(100)

    with grpc.insecure_channel(stack.address("gateway")) as channel, ThreadPoolExecutor(30) as pool:

        def by_grpc(_: int) -> None:
            call = InferenceServiceStub(channel).StreamGenerate(
                StreamGenerateRequest(model=f"models/{WRITER}", text="the room"),
                metadata=(("authorization", f"Bearer {key}"),),
                timeout=60,
            )
            try:
                next(call)
            except grpc.RpcError as error:
                if error.code().name not in BUSY:
                    raise
            call.cancel()

        list(pool.map(lambda number: (by_http, by_grpc)[number % 2](number), range(callers)))
    # Whoever comes after them is answered; a task that was forgotten is reported when it is collected.
    load = Load(stack, key, folder, callers=1, pause_s=0.2)
    with load.running():
        wait_until(lambda: all(count >= 3 for count in load.answered().values()), "answers after the hang-ups")
    assert load.defects == {}
    assert ended(stack, before) == []
    assert logs.errors() == []


def _long_chat() -> dict[str, object]:
    return {"model": WRITER, "stream": True, "messages": [{"role": "user", "content": "the room"}]}
