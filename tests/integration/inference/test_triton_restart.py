"""Triton, or the process of a model in it, is killed under the service."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tidemill.inference.v1 import inference_service_pb2 as pb
from tidemill.inference.v1 import model_pb2

from infra.stack.testing import running_parts
from tests.integration.inference.conftest import Builds, InferenceProcess, SpanReceiver
from tests.waiting import wait_until

pytestmark = pytest.mark.real


def test_models_answer_again_after_triton_was_killed(
    builds: Builds, spans: tuple[SpanReceiver, str], tmp_path: Path
) -> None:
    # A stack of its own: killing another's Triton would disturb whoever uses it.
    with running_parts({"kafka", "triton"}, tmp_path / "stack", own=True) as stack:
        service = InferenceProcess(stack, tmp_path, spans[1], builds.root)
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

                return wait_until(ask, patience_s=60)

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


def _processes(model: str) -> list[psutil.Process]:
    """The processes of a model in Triton, not the shell that started them."""
    found = psutil.process_iter(["name", "cmdline"])
    named = [p for p in found if "python_backend_stub" in " ".join((p.info["cmdline"] or [])[:1])]
    return [p for p in named if any(f"/{model}." in part for part in p.info["cmdline"])]


def test_a_model_whose_process_dies_comes_back_and_leaves_no_caller_waiting(
    inference: InferenceProcess, builds: Builds, model: str
) -> None:
    inference.publish(model, builds.writer)
    talk = model_pb2.Conversation(messages=[model_pb2.ChatMessage(role="user", content="hi")])
    request = pb.StreamGenerateRequest(
        model=f"models/{model}", conversation=talk, sampling=model_pb2.SamplingParams(max_tokens=230)
    )
    killed = threading.Event()

    def ask(number: int) -> grpc.StatusCode:
        call = inference.stub.StreamGenerate(request, timeout=120)
        try:
            next(call)
            if number == 0:
                for process in _processes(model):
                    process.kill()
                killed.set()
            for _ in call:
                pass
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    with ThreadPoolExecutor(12) as pool:
        codes = list(pool.map(ask, range(12)))
    assert killed.is_set()
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert grpc.StatusCode.UNAVAILABLE in codes
    whole = pb.GenerateRequest(model=f"models/{model}", text="good")

    def answers() -> Any:
        try:
            return inference.stub.Generate(whole, timeout=30)
        except grpc.RpcError:
            return None

    # Triton may abort when a process of a model is killed at a bad moment; then all models of the run are loaded again.
    assert wait_until(answers, patience_s=300).model_version == f"models/{model}/versions/1"
