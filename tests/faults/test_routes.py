"""Routes of several versions while everything around them is killed, and while versions come and go."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import model_pb2, route_pb2
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from infra.stack import client
from infra.stack.testing import running_parts
from services.kit.config import home_dir
from tests.integration.inference.builds import make_classifier, make_generator
from tests.integration.inference.conftest import BuildFolder, InferenceProcess
from tests.waiting import wait_until

pytestmark = pytest.mark.real

SERVING, CANARY = route_pb2.VERSION_ROLE_SERVING, route_pb2.VERSION_ROLE_CANARY
USERS = [f"user-{number}" for number in range(100)]
MODEL, WRITER = "classifier", "writer"
LABELS = {1: "positive", 2: "negative"}


class Served:
    """A classifier with two versions and a writer, on a Triton of its own; what leaves a route is unloaded at once."""

    def __init__(self, stack: Any, state: Any, folder: Any) -> None:
        self.stack, self.state = stack, state
        artifacts = folder / "artifacts"
        self.service = InferenceProcess(stack, folder, "http://127.0.0.1:9", artifacts, drain_s=0.0)
        self.service.start()
        for name, weight in (("positive", 2.0), ("turned", -2.0)):
            build = BuildFolder(artifacts / name, make_classifier(artifacts / name, weight=weight))
            self.service.publish(MODEL, build)
        self.writer = BuildFolder(artifacts / "writer", make_generator(artifacts / "writer", folder / "scratch"))
        self.service.publish(WRITER, self.writer)

    def set_route(self, weights: Mapping[int, int]) -> Any:
        """The first version serves, the others are canaries."""
        entries = [
            route_pb2.RouteEntry(version=number, role=CANARY if at else SERVING, weight=weight)
            for at, (number, weight) in enumerate(weights.items())
        ]
        request = pb.SetRouteRequest(model=f"models/{MODEL}", entries=entries, etag="*")
        route = self.service.stub.SetRoute(request, timeout=120).route
        self.service.wait_routed(route)
        return route

    def ask(self, user: str) -> int:
        """The version that answers a user; what it says fits it."""
        request = pb.PredictRequest(model=f"models/{MODEL}", texts=["good"])
        answer = self.service.stub.Predict(request, timeout=60, metadata=(("x-user-id", user),))
        number = int(answer.model_version.rpartition("/")[2])
        assert answer.predictions[0].label == LABELS[number]
        return number

    def answered(self, patience_s: float = 120) -> dict[str, int]:
        """Which version each user gets, once all are answered; what is refused meanwhile may be asked again."""
        found: dict[str, int] = {}
        for user in USERS:

            def asked(user: str = user) -> int | None:
                try:
                    return self.ask(user)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.UNAVAILABLE:
                        return None
                    raise

            found[user] = wait_until(asked, patience_s=patience_s)
        return found

    def kill_triton(self) -> None:
        """kill -9; its supervisor starts it again."""
        pid = client.status(self.state, home_dir()).children["triton"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: client.status(self.state, home_dir()).children["triton"].pid not in (pid, None))

    def is_loaded(self, name: str) -> bool:
        """Whether Triton has a version."""
        with grpc.insecure_channel(self.stack.triton_grpc) as channel:
            ready = service_pb2.ModelReadyRequest(name=name)
            return bool(GRPCInferenceServiceStub(channel).ModelReady(ready, timeout=10).ready)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("routes")
    # A stack of its own: killing another's Triton would disturb whoever uses it.
    with running_parts({"kafka", "triton"}, folder / "stack", own=True) as stack:
        served = Served(stack, folder / "stack", folder)
        yield served
        assert served.service.stop() == 0


@pytest.mark.slow
def test_users_keep_their_versions_while_every_process_is_killed(served: Served) -> None:
    route = served.set_route({1: 70, 2: 30})
    first = served.answered()
    shares = Counter(first.values())
    assert 0.5 < shares[1] / len(USERS) < 0.9
    # The gateway alone, while inference is gone: it has the routes in a file.
    served.service.kill()
    served.service.kill_gateway()
    served.service.start_gateway()
    assert served.answered() == first
    served.service.start_control()
    served.kill_triton()
    assert served.answered() == first
    # Everything at once.
    served.service.kill()
    served.service.kill_gateway()
    served.kill_triton()
    served.service.start_control()
    served.service.start_gateway()
    assert served.answered() == first
    now = served.service.stub.GetRoute(pb.GetRouteRequest(model=f"models/{MODEL}"), timeout=10).route
    assert (now.etag, [version.users for version in now.versions]) == (
        route.etag,
        [version.users for version in route.versions],
    )


@pytest.mark.slow
def test_no_request_fails_while_the_route_changes(served: Served) -> None:
    served.set_route({1: 70, 2: 30})
    stop = threading.Event()

    def ask(number: int) -> Counter[int]:
        found: Counter[int] = Counter()
        while not stop.is_set():
            found[served.ask(f"user-{number}-{found.total() % 20}")] += 1
        return found

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, number) for number in range(4)]
        try:
            # Versions leave, are unloaded at once, and come back.
            for weights in ({1: 50, 2: 50}, {2: 100}, {1: 100}, {2: 70, 1: 30}, {1: 100}, {2: 100}):
                served.set_route(weights)
        finally:
            stop.set()
        found = sum((future.result() for future in asked), Counter[int]())
    assert found.keys() == {1, 2}


def test_running_answers_end_on_their_version_while_it_is_taken_out(served: Served) -> None:
    talk = model_pb2.Conversation(messages=[model_pb2.ChatMessage(role="user", content="hi")])
    request = pb.StreamGenerateRequest(
        model=f"models/{WRITER}", conversation=talk, sampling=model_pb2.SamplingParams(max_tokens=230, temperature=1)
    )
    begun = threading.Barrier(13, timeout=120)

    def read() -> list[Any]:
        call = served.service.stub.StreamGenerate(request, timeout=300)
        pieces = [next(call)]
        begun.wait()
        return [*pieces, *call]

    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(read) for _ in range(12)]
        begun.wait()
        taken = served.service.stub.UnpublishModel(pb.UnpublishModelRequest(model=f"models/{WRITER}"), timeout=60)
        assert not taken.model.HasField("serving")
        answers = [future.result() for future in asked]
    assert all(pieces[-1].finish_reason for pieces in answers)
    assert {piece.model_version for pieces in answers for piece in pieces} == {f"models/{WRITER}/versions/1"}
    wait_until(lambda: not served.is_loaded(f"{WRITER}.1"))
