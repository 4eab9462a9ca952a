"""Controls Triton: load, unload, ready models. Blocking calls, one at a time per model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from services.kit.errors import FailedPreconditionError, TidemillError, UnavailableError
from services.serving.domain.names import parse_server_model, server_model, version_name

_ASK_S = 10.0
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class TritonControl:
    """Implements `services.inference.app.ports.ModelServer`. Thread-safe; close it at the end."""

    def __init__(self, address: str, *, load_timeout_s: float) -> None:
        """Args:
        address: host:port of Triton's gRPC.
        load_timeout_s: longest load; a model that cannot start its process would else hang for ever.
        """
        self._address = address
        self._load_timeout_s = load_timeout_s
        self._channel = grpc.insecure_channel(
            address, options=[("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000)]
        )
        self._stub = GRPCInferenceServiceStub(self._channel)

    def load(self, model: str, number: int) -> None:
        """See the port."""
        request = pb.RepositoryModelLoadRequest(model_name=server_model(model, number))
        try:
            self._stub.RepositoryModelLoad(request, timeout=self._load_timeout_s)
        except grpc.RpcError as error:
            raise self._translate(error, f"load {version_name(model, number)}") from error

    def unload(self, model: str, number: int) -> None:
        """See the port."""
        request = pb.RepositoryModelUnloadRequest(model_name=server_model(model, number))
        try:
            self._stub.RepositoryModelUnload(request, timeout=self._load_timeout_s)
        except grpc.RpcError as error:
            raise self._translate(error, f"unload {version_name(model, number)}") from error

    def ready_versions(self) -> Mapping[str, frozenset[int]]:
        """See the port."""
        try:
            index = self._stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True), timeout=_ASK_S)
        except grpc.RpcError as error:
            raise self._translate(error, "list its models") from error
        found: dict[str, set[int]] = defaultdict(set)
        for item in index.models:
            version = parse_server_model(item.name)
            if item.state == "READY" and version is not None:
                found[version[0]].add(version[1])
        return {name: frozenset(versions) for name, versions in found.items()}

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def _translate(self, error: Any, doing: str) -> TidemillError:
        details = error.details() or ""
        if error.code() in _AWAY:
            return UnavailableError(
                f"Triton at {self._address} did not {doing}: {details}", reason="TRITON_UNAVAILABLE", retry_after_s=2
            )
        return FailedPreconditionError(
            f"Triton refused to {doing}: {details}", reason="TRITON_REFUSED", metadata={"triton": details[:1000]}
        )
