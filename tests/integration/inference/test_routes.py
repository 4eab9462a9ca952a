"""Several versions of one model that answer side by side, through every door."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tidemill.inference.v1 import inference_events_pb2 as events
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import model_pb2, route_pb2

from infra.stack.state import StackState
from services.kit.ids import new_id
from tests.integration.inference.conftest import Builds, InferenceProcess
from tests.integration.inference.test_service import events_of, reason_of
from tests.waiting import wait_until

pytestmark = pytest.mark.real

SERVING, CANARY, SHADOW, CANDIDATE = (
    route_pb2.VERSION_ROLE_SERVING,
    route_pb2.VERSION_ROLE_CANARY,
    route_pb2.VERSION_ROLE_SHADOW,
    route_pb2.VERSION_ROLE_CANDIDATE,
)
USERS = [f"user-{number}" for number in range(200)]


def route_of(inference: InferenceProcess, model: str) -> Any:
    """The route now."""
    return inference.stub.GetRoute(pb.GetRouteRequest(model=f"models/{model}"), timeout=10).route


def set_route(
    inference: InferenceProcess,
    model: str,
    *entries: tuple[int, Any, int],
    etag: str = "",
    aliases: Mapping[str, int] | None = None,
) -> Any:
    """Sets the route to entries of version, role and weight; over the one that is there now."""
    request = pb.SetRouteRequest(
        model=f"models/{model}",
        entries=[route_pb2.RouteEntry(version=number, role=role, weight=weight) for number, role, weight in entries],
        aliases=aliases or {},
        etag=etag or route_of(inference, model).etag,
    )
    route = inference.stub.SetRoute(request, timeout=120).route
    inference.wait_routed(route)
    return route


def ask(inference: InferenceProcess, model: str, user: str = "") -> Any:
    """A prediction for a user."""
    metadata = (("x-user-id", user),) if user else ()
    request = pb.PredictRequest(model=f"models/{model}", texts=["good"])
    return inference.stub.Predict(request, timeout=30, metadata=metadata)


def number_of(answer: Any) -> int:
    """The version that answered; what it said fits it."""
    number = int(answer.model_version.rpartition("/")[2])
    assert answer.predictions[0].label == {1: "positive", 2: "negative"}[number]
    return number


def answered(inference: InferenceProcess, model: str) -> dict[str, int]:
    """Which version each user gets."""
    return {user: number_of(ask(inference, model, user)) for user in USERS}


@pytest.fixture
def two(inference: InferenceProcess, builds: Builds, model: str) -> str:
    """A model with version 1 at 70 and version 2 at 30."""
    inference.publish(model, builds.positive)
    inference.publish(model, builds.turned)
    set_route(inference, model, (1, SERVING, 70), (2, CANARY, 30))
    return model


def test_two_versions_share_the_users_and_each_keeps_its_own(inference: InferenceProcess, two: str) -> None:
    first = answered(inference, two)
    shares = Counter(first.values())
    assert 0.55 < shares[1] / len(USERS) < 0.85
    assert answered(inference, two) == first
    # Without a user by weight, each call for itself.
    assert set(Counter(number_of(ask(inference, two)) for _ in range(60))) == {1, 2}
    set_route(inference, two, (1, SERVING, 60), (2, CANARY, 40))
    moved = {user: number for user, number in answered(inference, two).items() if first[user] != number}
    assert set(moved.values()) <= {2}
    assert len(moved) < 0.2 * len(USERS)


def test_each_door_names_the_version_and_takes_names_of_versions(inference: InferenceProcess, two: str) -> None:
    set_route(inference, two, (1, SERVING, 70), (2, CANARY, 30), aliases={"challenger": 2})
    tensor = triton.InferInput("text", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"good"]], dtype=np.object_))
    v2 = {"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["good"]}]}
    with httpx.Client(base_url=f"http://127.0.0.1:{inference.http}", timeout=30) as http:
        for name, number, role in (
            ("1", 1, "serving"),
            ("champion", 1, "serving"),
            ("2", 2, "canary"),
            ("challenger", 2, "canary"),
        ):
            label = {1: "positive", 2: "negative"}[number]
            headers = {"x-model-version": f"models/{two}/versions/{number}", "x-model-role": role}
            answer = ask(inference, f"{two}/versions/{name}")
            assert (answer.model_version, answer.role) == (headers["x-model-version"], role)
            assert answer.predictions[0].label == label

            over = http.post("/v1/predict", json={"model": f"{two}/versions/{name}", "texts": ["good"]})
            assert over.json()["predictions"][0]["label"] == label
            assert headers.items() <= dict(over.headers).items()

            over = http.post(f"/v2/models/{two}/versions/{name}/infer", json=v2)
            assert (over.json()["model_name"], over.json()["model_version"]) == (two, str(number))
            assert over.json()["outputs"][0]["data"] == [label]
            assert headers.items() <= dict(over.headers).items()
            assert http.get(f"/v2/models/{two}/versions/{name}/ready").status_code == 200

            with triton.InferenceServerClient(f"127.0.0.1:{inference.port}") as client:
                found = client.infer(two, [tensor], model_version=name, client_timeout=30)
                assert found.as_numpy("label").tolist() == [[label.encode()]]
                assert found.get_response().model_name == two
        assert http.get(f"/v2/models/{two}").json()["versions"] == ["1", "2"]
        users = {
            user: http.post(f"/v2/models/{two}/infer", json=v2, headers={"x-user-id": user}) for user in USERS[:20]
        }
        expected = answered(inference, two)
        assert {user: int(over.json()["model_version"]) for user, over in users.items()} == {
            user: expected[user] for user in users
        }
        over = http.post("/v1/predict", json={"model": f"{two}/versions/9", "texts": ["good"]})
        assert over.status_code == 404


def test_both_versions_of_a_writer_are_asked_over_the_openai_door(
    inference: InferenceProcess, builds: Builds, model: str
) -> None:
    inference.publish(model, builds.writer)
    inference.publish(model, builds.second_writer)
    set_route(inference, model, (1, SERVING, 50), (2, CANARY, 50))
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    with httpx.Client(base_url=f"http://127.0.0.1:{inference.http}", timeout=30) as http:
        seen: dict[str, str] = {}
        for user in USERS[:12]:
            answer = http.post("/v1/chat/completions", json=body | {"user": user})
            seen[user] = answer.headers["x-model-version"]
            assert answer.json()["system_fingerprint"] == seen[user]
            stream = http.post("/v1/chat/completions", json=body | {"stream": True}, headers={"x-user-id": user})
            assert stream.headers["x-model-version"] == seen[user]
        assert set(seen.values()) == {f"models/{model}/versions/{number}" for number in (1, 2)}
        named = http.post("/v1/chat/completions", json=body | {"model": f"{model}/versions/2"})
        assert named.headers["x-model-version"] == f"models/{model}/versions/2"
        assert http.get(f"/v1/models/{model}/versions/2").json()["version"] == f"models/{model}/versions/2"
    talk = model_pb2.Conversation(messages=[model_pb2.ChatMessage(role="user", content="hi")])
    request = pb.StreamGenerateRequest(model=f"models/{model}/versions/champion", conversation=talk)
    pieces = list(inference.stub.StreamGenerate(request, timeout=60))
    assert {(piece.model_version, piece.role) for piece in pieces} == {(f"models/{model}/versions/1", "serving")}


@pytest.fixture(scope="module")
def unchanged(inference: InferenceProcess, builds: Builds) -> str:
    """A model with two versions whose route no test changes."""
    name = f"test-{new_id()[-12:]}"
    inference.publish(name, builds.positive)
    inference.publish(name, builds.turned)
    return name


@pytest.mark.parametrize(
    ("entries", "aliases", "field"),
    [
        ([(1, SERVING, 70), (9, CANARY, 30)], {}, "entries[1].version"),
        ([(1, SERVING, 0), (2, CANARY, 0)], {}, "entries[0].weight"),
        ([(1, SERVING, 50), (2, SERVING, 50)], {}, "entries[1].role"),
        ([(1, SERVING, 50), (1, CANARY, 50)], {}, "entries[1].version"),
        ([(1, CANARY, 50)], {}, "entries"),
        ([(1, SERVING, 50), (2, SHADOW, 50)], {}, "entries[1].weight"),
        ([(1, SERVING, 50)], {"champion": 1}, "aliases[champion]"),
        ([(1, SERVING, 50)], {"stable": 2}, "aliases[stable]"),
        ([(1, SERVING, 20_000)], {}, "entries[0].weight"),
        ([], {}, "entries"),
    ],
)
def test_an_invalid_route_is_refused_with_its_field(
    inference: InferenceProcess,
    unchanged: str,
    entries: list[tuple[int, Any, int]],
    aliases: dict[str, int],
    field: str,
) -> None:
    before = route_of(inference, unchanged)
    with pytest.raises(grpc.RpcError) as caught:
        set_route(inference, unchanged, *entries, aliases=aliases)
    assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert field in fields_of(caught.value)
    assert route_of(inference, unchanged) == before


def fields_of(error: Any) -> list[str]:
    """The fields that an error names."""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    violations = error_details_pb2.BadRequest()
    status = rpc_status.from_call(error)
    assert status is not None
    assert any(detail.Unpack(violations) for detail in status.details), status
    return [violation.field for violation in violations.field_violations]


def test_two_writers_cannot_overwrite_each_other_unseen(inference: InferenceProcess, two: str) -> None:
    etag = route_of(inference, two).etag
    set_route(inference, two, (1, SERVING, 50), (2, CANARY, 50), etag=etag)
    with pytest.raises(grpc.RpcError) as caught:
        set_route(inference, two, (1, SERVING, 10), (2, CANARY, 90), etag=etag)
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert reason_of(caught.value) == "ROUTE_CHANGED"
    assert [version.weight for version in route_of(inference, two).versions] == [50, 50]
    assert set_route(inference, two, (1, SERVING, 10), etag="*").serving == f"models/{two}/versions/1"


def test_a_shadow_gets_copies_and_answers_no_one(
    inference: InferenceProcess, builds: Builds, model: str, stack: StackState
) -> None:
    inference.publish(model, builds.positive)
    inference.publish(model, builds.turned)
    set_route(inference, model, (1, SERVING, 100), (2, SHADOW, 0))
    answers = [ask(inference, model, user) for user in USERS[:10]]
    assert {number_of(answer) for answer in answers} == {1}
    mine = {answer.predictions[0].answer for answer in answers}
    events_found = events_of(
        stack,
        "tidemill.predictions",
        events.PredictionServed,
        lambda event: event.model_version == f"models/{model}/versions/2",
    )
    assert {event.shadowed_answer for event in events_found} <= mine
    assert {(event.role, event.label) for event in events_found} == {("shadow", "negative")}
    assert not {event.answer for event in events_found} & mine
    v2 = {"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["good"]}]}
    with httpx.Client(base_url=f"http://127.0.0.1:{inference.http}", timeout=30) as http:
        assert http.post(f"/v2/models/{model}/infer", json=v2).json()["outputs"][0]["data"] == ["positive"]
        # A copy for each, the V2 call's too.
        wait_until(lambda: _copies(http.get("/metrics").text) >= 11)


def _copies(metrics: str) -> float:
    found = [line for line in metrics.splitlines() if line.startswith("shadow_calls_total{") and "answered" in line]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


def test_a_changed_route_is_on_the_bus(inference: InferenceProcess, two: str, stack: StackState) -> None:
    etag = route_of(inference, two).etag
    (events_found,) = events_of(
        stack,
        "tidemill.inference.events",
        events.RouteChanged,
        lambda event: event.model == f"models/{two}" and event.etag == etag,
    )
    assert [(entry.version, entry.role, entry.weight) for entry in events_found.entries] == [
        (1, SERVING, 70),
        (2, CANARY, 30),
    ]
