"""The client for asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import grpc

from tidemill_client import _requests as requests
from tidemill_client._channel import Target
from tidemill_client._protos.tidemill.inference.v1 import inference_service_pb2 as inference
from tidemill_client._protos.tidemill.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from tidemill_client._protos.tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub
from tidemill_client._retries import Attempts, Budget
from tidemill_client.answers import Answer, Message, Piece, Predictions, Sampling
from tidemill_client.errors import TidemillError


class AsyncClient:
    """As `Client`, for an event loop; create it inside the loop, and use `async with` or `await close()`."""

    def __init__(
        self,
        address: str = "127.0.0.1:7100",
        *,
        key: str | None = None,
        timeout: float = 30.0,
        tls: bool = False,
        ca: str | os.PathLike[str] | None = None,
        certificate: str | os.PathLike[str] | None = None,
        client_key: str | os.PathLike[str] | None = None,
    ) -> None:
        """Arguments and errors as `Client`."""
        self._target = Target(
            address, os.environ.get("TIDEMILL_API_KEY") if key is None else key, ca, certificate, client_key, tls
        )
        self._timeout = timeout
        self._budget = Budget()
        self._channel = self._target.open(aio=True)
        self._inference: Any = InferenceServiceStub(self._channel)
        self._pipeline: Any = PipelineServiceStub(self._channel)

    async def predict(
        self, model: str, texts: Sequence[str], *, user: str | None = None, timeout: float | None = None
    ) -> Predictions:
        """As `Client.predict`; several requests go out at the same time."""
        calls = (
            self._call(self._inference.Predict, requests.predict(model, part), user, timeout)
            for part in requests.parts(texts)
        )
        return requests.predictions(await asyncio.gather(*calls))

    async def generate(
        self,
        model: str,
        *,
        text: str | None = None,
        messages: Iterable[Message | tuple[str, str]] | None = None,
        sampling: Sampling | None = None,
        user: str | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """As `Client.generate`."""
        request = requests.generate(inference.GenerateRequest, model, text, messages, sampling)
        return requests.answer(await self._call(self._inference.Generate, request, user, timeout))

    def stream(
        self,
        model: str,
        *,
        text: str | None = None,
        messages: Iterable[Message | tuple[str, str]] | None = None,
        sampling: Sampling | None = None,
        user: str | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Piece]:
        """As `Client.stream`."""
        request = requests.generate(inference.StreamGenerateRequest, model, text, messages, sampling)
        return self._stream(request, user, timeout)

    async def feedback(
        self, answer: str, *, rating: float, correction: str = "", author: str = "", timeout: float | None = None
    ) -> None:
        """As `Client.feedback`."""
        request = requests.feedback(answer, rating, correction, author)
        await self._call(self._pipeline.RecordFeedback, request, None, timeout)

    async def close(self) -> None:
        """Closes the connection; calls under way end."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, method: Callable[..., Any], request: Any, user: str | None, timeout: float | None) -> Any:
        attempts = Attempts(self._timeout if timeout is None else timeout, self._budget)
        while True:
            try:
                response = await method(request, timeout=attempts.left, metadata=self._target.metadata(user))
            except grpc.RpcError as error:
                await asyncio.sleep(attempts.pause(TidemillError.of(error)))
            else:
                attempts.succeeded()
                return response

    async def _stream(self, request: Any, user: str | None, timeout: float | None) -> AsyncIterator[Piece]:
        attempts = Attempts(self._timeout if timeout is None else timeout, self._budget)
        while True:
            call = self._inference.StreamGenerate(request, timeout=attempts.left, metadata=self._target.metadata(user))
            begun = False
            try:
                async for response in call:
                    begun = True
                    yield requests.piece(response)
                attempts.succeeded()
                return
            except grpc.RpcError as error:
                found = TidemillError.of(error)
                if begun:
                    raise found from error
                await asyncio.sleep(attempts.pause(found))
            finally:
                call.cancel()
