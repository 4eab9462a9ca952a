"""Publishes a build by the inference service itself, without a run that made it."""

from __future__ import annotations

from typing import Any

import grpc
from tidemill.inference.v1 import inference_service_pb2 as pb

from tests.waiting import wait_until

_CALL_S = 240.0


def publish_when_available(stub: Any, request: pb.PublishModelRequest, patience_s: float) -> Any:
    """The answer of `PublishModel`, which is retried while Triton is unavailable (2.51 crashes now and then)."""

    def published() -> Any:
        try:
            return stub.PublishModel(request, timeout=_CALL_S)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            raise AssertionError(error) from None

    return wait_until(published, f"the publication of {request.model}", patience_s)
