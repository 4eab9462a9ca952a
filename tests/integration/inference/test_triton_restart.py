"""Triton is killed under the service."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tidemill.inference.v1 import inference_service_pb2 as pb

from infra.stack.testing import REUSE, running_parts
from tests.integration.inference.conftest import Builds, InferenceProcess, SpanReceiver, wait_for

pytestmark = pytest.mark.real


def test_models_answer_again_after_triton_was_killed(
    builds: Builds, spans: tuple[SpanReceiver, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stack of its own: killing another's Triton would disturb whoever uses it.
    monkeypatch.delenv(REUSE, raising=False)
    with running_parts({"kafka", "triton"}, tmp_path / "stack") as stack:
        service = InferenceProcess(stack, tmp_path, spans[1])
        service.start()
        try:
            service.publish("classifier", builds.positive)
            service.publish("classifier", builds.turned)
            service.publish("writer", builds.writer)
            predict = pb.PredictRequest(model="models/classifier", texts=["good"])
            assert service.stub.Predict(predict, timeout=30).predictions[0].label == "negative"

            pid = stack.children["triton"].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            refused: list[Any] = []

            def first_answer(method: Any, request: Any) -> Any:
                def ask() -> Any:
                    try:
                        return method(request, timeout=30)
                    except grpc.RpcError as error:
                        refused.append(error)
                        return None

                return wait_for(ask, 60)

            answer = first_answer(service.stub.Predict, predict)
            assert answer.predictions[0].label == "negative"
            assert answer.model_version == "models/classifier/versions/2"
            generate = pb.GenerateRequest(model="models/writer", text="good")
            assert first_answer(service.stub.Generate, generate).usage.completion_tokens > 0
            assert refused
            for error in refused:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error.details()
                status: Any = rpc_status.from_call(error)
                assert any(detail.Unpack(error_details_pb2.RetryInfo()) for detail in status.details)
        finally:
            assert service.stop() == 0
