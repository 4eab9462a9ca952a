"""What both clients are made of: the gateway's address, a channel with its stubs, and the budget of retries."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from tidemill_client._channel import Target
from tidemill_client._protos.tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from tidemill_client._protos.tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub
from tidemill_client._retries import Attempts, Budget


class Connected:
    """A client before it has methods."""

    _AIO: ClassVar[bool]

    def __init__(
        self,
        address: str = "127.0.0.1:7100",
        *,
        key: str | None = None,
        timeout: float = 30.0,
        retries: float = 20.0,
        background: bool = False,
        tls: bool = False,
        ca: str | os.PathLike[str] | None = None,
        certificate: str | os.PathLike[str] | None = None,
        client_key: str | os.PathLike[str] | None = None,
    ) -> None:
        """Args:
        address: `host:port` of the gateway's gRPC API.
        key: API key; the variable TIDEMILL_API_KEY when None.
        timeout: seconds for a whole call, retries included, unless the call names its own.
        retries: what the client may spend on retries at once, see the README; 0 for none.
        background: whether no one waits for the answers, so that others come first.
        tls: whether the gateway is reached over TLS, trusted by the machine's authorities; `ca` implies it.
        ca: PEM file of the authorities to trust.
        certificate: PEM file of this client's certificate, where the gateway wants one.
        client_key: PEM file of its key.

        Raises:
            OSError: a file cannot be read.
        """
        self._target = Target(
            address,
            os.environ.get("TIDEMILL_API_KEY") if key is None else key,
            ca,
            certificate,
            client_key,
            tls,
            background,
        )
        self._timeout = timeout
        self._budget = Budget(retries)
        self._channel = self._target.open(aio=self._AIO)
        self._inference: Any = InferenceServiceStub(self._channel)
        self._pipeline: Any = PipelineServiceStub(self._channel)

    def _attempts(self, timeout: float | None) -> Attempts:
        """Of a call that begins now; `timeout` in seconds, the client's own when None."""
        return Attempts(self._timeout if timeout is None else timeout, self._budget)
