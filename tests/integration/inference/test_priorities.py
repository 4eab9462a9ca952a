"""In Triton's queue of a classifier, what no one waits for comes after what someone does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as v2

from infra.stack.state import StackState
from services.serving.adapters.triton_tensors import MAX_BATCH, PRIORITY, add_texts, add_turn
from services.serving.domain.answer import CallerPriority
from tests.integration.inference.conftest import Builds, InferenceProcess

pytestmark = pytest.mark.real

WAITING = 120
LONG = " ".join(["good", "bad"] * 32)


@pytest.fixture
def infer(stack: StackState) -> Iterator[Any]:
    """Triton's ModelInfer, for messages that are serialised already: a fast model must not answer while they are."""
    with grpc.insecure_channel(stack.triton_grpc) as channel:
        yield channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", response_deserializer=v2.ModelInferResponse.FromString
        )


def _asked(model: str, texts: list[str], turn: CallerPriority) -> bytes:
    request = v2.ModelInferRequest(model_name=f"{model}.1")
    add_texts(request, "text", texts, [len(texts), 1])
    add_turn(request, turn)
    return bytes(request.SerializeToString())


def test_a_caller_who_waits_goes_before_the_background(
    inference: InferenceProcess, builds: Builds, infer: Any, model: str
) -> None:
    inference.publish(model, builds.positive)

    def overtaken(priority: CallerPriority) -> float:
        """The share of the requests which wait when the last one is sent that wait still when it is answered."""
        batch = _asked(model, [LONG] * MAX_BATCH, CallerPriority(background=True))
        last = _asked(model, ["good"], priority)
        before = [infer.future(batch, timeout=120) for _ in range(WAITING)]
        answer = infer.future(last, timeout=120)
        waiting = [each for each in before if not each.done()]
        assert len(waiting) > WAITING / 4, "the model is faster than its callers"
        answer.result()
        left = sum(not each.done() for each in waiting)
        for each in before:
            assert each.result().outputs
        return left / len(waiting)

    assert overtaken(CallerPriority()) > 0.5
    assert overtaken(CallerPriority(background=True)) < 0.25


def test_a_caller_gives_no_priority_to_itself() -> None:
    request = v2.ModelInferRequest()
    request.parameters[PRIORITY].uint64_param = 1
    add_turn(request, CallerPriority("a"))
    assert PRIORITY not in request.parameters
    request.parameters[PRIORITY].uint64_param = 1
    add_turn(request, CallerPriority("a", background=True))
    assert request.parameters[PRIORITY].uint64_param == 2
