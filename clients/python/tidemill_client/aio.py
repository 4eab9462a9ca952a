"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import grpc

from tidemill_client import _requests as requests
from tidemill_client._connected import Connected
from tidemill_client._protos.tidemill.inference.v1 import inference_service_pb2 as inference
from tidemill_client.answers import Answer, Embeddings, Judgement, Message, Piece, Predictions, Sampling, Signal
from tidemill_client.errors import TidemillError


class AsyncClient(Connected):
    """As `Client`, for an event loop; create it inside the loop, and use `async with` or `await close()`."""

    _AIO = True

    async def predict(
        self,
        model: str,
        texts: Sequence[str],
        *,
        user: str | None = None,
        truncate: bool = True,
        store: bool | None = None,
        timeout: float | None = None,
    ) -> Predictions:
        """As `Client.predict`; several requests go out at the same time."""
        parts = requests.parts(texts)
        user = requests.user_of(user, len(parts))
        calls = (
            self._call(self._inference.Predict, requests.predict(model, part, truncate, store), user, timeout)
            for part in parts
        )
        return requests.predictions(await asyncio.gather(*calls))

    async def embed(
        self,
        model: str,
        texts: Sequence[str],
        *,
        dimensions: int | None = None,
        truncate: bool = True,
        timeout: float | None = None,
    ) -> Embeddings:
        """As `Client.embed`."""
        request = requests.embed(model, texts, dimensions, truncate)
        return requests.embeddings(await self._call(self._inference.Embed, request, None, timeout))

    async def generate(
        self,
        model: str,
        *,
        text: str | None = None,
        messages: Iterable[Message | tuple[str, str]] | None = None,
        sampling: Sampling | None = None,
        user: str | None = None,
        store: bool | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """As `Client.generate`."""
        request = requests.generate(inference.GenerateRequest, model, text, messages, sampling, store)
        return requests.answer(await self._call(self._inference.Generate, request, user, timeout))

    def stream(
        self,
        model: str,
        *,
        text: str | None = None,
        messages: Iterable[Message | tuple[str, str]] | None = None,
        sampling: Sampling | None = None,
        user: str | None = None,
        store: bool | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Piece]:
        """As `Client.stream`."""
        request = requests.generate(inference.StreamGenerateRequest, model, text, messages, sampling, store)
        return self._stream(request, user, timeout)

    async def feedback(
        self,
        answer: str,
        *,
        rating: float = 0.0,
        label: str = "",
        correction: str = "",
        signal: Signal = "",
        comment: str = "",
        episode: str = "",
        author: str = "",
        timeout: float | None = None,
    ) -> None:
        """As `Client.feedback`."""
        judgement = Judgement(answer, rating, label, correction, signal, comment, episode, author)
        await self._call(self._pipeline.RecordFeedback, requests.feedback(judgement), None, timeout)

    async def feedback_batch(self, judgements: Sequence[Judgement], *, timeout: float | None = None) -> None:
        """As `Client.feedback_batch`."""
        for part in requests.parts(judgements, requests.MAX_JUDGEMENTS):
            await self._call(self._pipeline.BatchRecordFeedback, requests.feedback_batch(part), None, timeout)

    async def close(self) -> None:
        """Closes the connection; calls under way end."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, method: Callable[..., Any], request: Any, user: str | None, timeout: float | None) -> Any:
        attempts = self._attempts(timeout)
        while True:
            try:
                response = await method(request, timeout=attempts.left, metadata=self._target.metadata(user))
            except grpc.RpcError as error:
                await asyncio.sleep(attempts.pause(TidemillError.of(error)))
            else:
                attempts.succeeded()
                return response

    async def _stream(self, request: Any, user: str | None, timeout: float | None) -> AsyncIterator[Piece]:
        attempts = self._attempts(timeout)
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
