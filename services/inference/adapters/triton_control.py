"""Controls Triton: load, unload, ready models. Blocking calls, one at a time per model."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from services.inference.adapters.triton_probes import ask
from services.inference.domain.model import ModelVersion
from services.kit.errors import FailedPreconditionError, TidemillError, UnavailableError
from services.kit.probes import Probes
from services.kit.tls import Certificates, ClientFiles, TlsFiles
from services.serving.domain.names import parse_server_model, server_model, version_name

_ASK_S = 10.0
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class TritonControl:
    """Implements `services.inference.app.ports.ModelServer`. Thread-safe; close it at the end."""

    def __init__(self, address: str, *, load_timeout_s: float, tls: tuple[Path, Path, Path] | None = None) -> None:
        """Args:
        address: `host:port` or `unix:/path` of Triton's gRPC.
        load_timeout_s: longest load; a model that cannot start its process would else hang for ever.
        tls: certificate, key and authority for mutual TLS, on every connection but a Unix socket's; read again when
            they change.

        Raises:
            FailedPreconditionError: the files cannot be used; names the file.
        """
        self._address = address
        self._load_timeout_s = load_timeout_s
        self._files = None if tls is None or address.startswith("unix:") else ClientFiles(TlsFiles(*tls))
        self._lock = threading.Lock()
        self._channels = [_connect(address, None if self._files is None else self._files.read())]

    def load(self, model: str, number: int) -> None:
        """See the port."""
        request = pb.RepositoryModelLoadRequest(model_name=server_model(model, number))
        try:
            self._stub().RepositoryModelLoad(request, timeout=self._load_timeout_s)
        except grpc.RpcError as error:
            raise self._translate(error, f"load {version_name(model, number)}") from error

    def unload(self, model: str, number: int) -> None:
        """See the port."""
        request = pb.RepositoryModelUnloadRequest(model_name=server_model(model, number))
        try:
            self._stub().RepositoryModelUnload(request, timeout=self._load_timeout_s)
        except grpc.RpcError as error:
            raise self._translate(error, f"unload {version_name(model, number)}") from error

    def ready_versions(self) -> Mapping[str, frozenset[int]]:
        """See the port."""
        try:
            index = self._stub().RepositoryIndex(pb.RepositoryIndexRequest(ready=True), timeout=_ASK_S)
        except grpc.RpcError as error:
            raise self._translate(error, "list its models") from error
        found: dict[str, set[int]] = defaultdict(set)
        for item in index.models:
            version = parse_server_model(item.name)
            if item.state == "READY" and version is not None:
                found[version[0]].add(version[1])
        return {name: frozenset(versions) for name, versions in found.items()}

    def answers(self, version: ModelVersion, probes: Probes) -> Sequence[str]:
        """See the port."""
        try:
            return ask(self._stub(), version, probes)
        except grpc.RpcError as error:
            raise self._translate(error, f"answer probes of {version.name}") from error

    def close(self) -> None:
        """Closes the connections."""
        for channel in self._channels:
            channel.close()

    def _stub(self) -> GRPCInferenceServiceStub:
        """Of the newest connection. An earlier one stays open, for a load on it may take minutes."""
        with self._lock:
            if self._files is not None and (read := self._files.changed()) is not None:
                self._channels.append(_connect(self._address, read))
            return GRPCInferenceServiceStub(self._channels[-1])

    def _translate(self, error: Any, doing: str) -> TidemillError:
        details = error.details() or ""
        if error.code() in _AWAY:
            return UnavailableError(
                f"Triton at {self._address} did not {doing}: {details}", reason="TRITON_UNAVAILABLE", retry_after_s=2
            )
        return FailedPreconditionError(
            f"Triton refused to {doing}: {details}", reason="TRITON_REFUSED", metadata={"triton": details[:1000]}
        )


def _connect(address: str, files: Certificates | None) -> grpc.Channel:
    options = [("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000)]
    if files is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, files.channel_credentials(), options=options)
