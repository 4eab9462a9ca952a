"""In Triton's queue of a classifier, what no one waits for comes after what someone does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as v2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from infra.stack.state import StackState
from services.serving.adapters.triton_tensors import MAX_BATCH, PRIORITY, add_texts, add_turn
from services.serving.domain.answer import CallerPriority
from tests.integration.inference.conftest import Builds, InferenceProcess

pytestmark = pytest.mark.real

WAITING = 120
LONG = " ".join(["good", "bad"] * 32)


@pytest.fixture
def triton(stack: StackState) -> Iterator[Any]:
    with grpc.insecure_channel(stack.triton_grpc) as channel:
        yield GRPCInferenceServiceStub(channel)


def _asked(model: str, texts: list[str], turn: CallerPriority) -> Any:
    request = v2.ModelInferRequest(model_name=f"{model}.1")
    add_texts(request, "text", texts, [len(texts), 1])
    add_turn(request, turn)
    return request


def test_a_caller_who_waits_goes_before_the_background(
    inference: InferenceProcess, builds: Builds, triton: Any, model: str
) -> None:
    inference.publish(model, builds.positive)

    def left_when_answered(last: CallerPriority) -> int:
        """How many of the requests that were sent before are still waiting when the last one is answered."""
        batch = _asked(model, [LONG] * MAX_BATCH, CallerPriority(background=True))
        before = [triton.ModelInfer.future(batch, timeout=120) for _ in range(WAITING)]
        triton.ModelInfer(_asked(model, ["good"], last), timeout=120)
        left = sum(not each.done() for each in before)
        for each in before:
            assert each.result().outputs
        return left

    online, behind = left_when_answered(CallerPriority()), left_when_answered(CallerPriority(background=True))
    assert online > WAITING / 2
    assert behind < WAITING / 4


def test_a_caller_gives_no_priority_to_itself() -> None:
    request = v2.ModelInferRequest()
    request.parameters[PRIORITY].uint64_param = 1
    add_turn(request, CallerPriority("a"))
    assert PRIORITY not in request.parameters
    request.parameters[PRIORITY].uint64_param = 1
    add_turn(request, CallerPriority("a", background=True))
    assert request.parameters[PRIORITY].uint64_param == 2
