"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc

from tidemill_client import _requests as requests
from tidemill_client._connected import Connected
from tidemill_client._protos.tidemill.inference.v1 import inference_service_pb2 as inference
from tidemill_client.answers import Answer, Embeddings, Judgement, Message, Piece, Predictions, Sampling, Signal
from tidemill_client.errors import TidemillError


class Client(Connected):
    """Calls a mesh; safe to share between threads. Use it in a `with` statement or call `close`."""

    _AIO = False

    def predict(
        self,
        model: str,
        texts: Sequence[str],
        *,
        user: str | None = None,
        truncate: bool = True,
        store: bool | None = None,
        timeout: float | None = None,
    ) -> Predictions:
        """Classifies texts. More than 256 go out as several requests, each with the timeout.

        Args:
            model: its name.
            texts: at most 64 KiB each.
            user: whose request it is: the same user meets the same version of the model.
            truncate: whether a text that is longer than the model reads is cut at its end; else it is refused.
            store: False keeps nothing of the texts, also where the model's pipeline captures answers.
            timeout: seconds, for this call.

        Raises:
            TidemillError: the call failed.
        """
        parts = requests.parts(texts)
        user = requests.user_of(user, len(parts))
        return requests.predictions(
            self._call(self._inference.Predict, requests.predict(model, part, truncate, store), user, timeout)
            for part in parts
        )

    def embed(
        self,
        model: str,
        texts: Sequence[str],
        *,
        dimensions: int | None = None,
        truncate: bool = True,
        timeout: float | None = None,
    ) -> Embeddings:
        """Turns texts into vectors, by the encoder of a classifier.

        Args:
            model: its name; without `/versions/...` the serving version answers.
            texts: at most 2048 of at most 64 KiB each.
            dimensions: how many of the first to keep, normalised again.
            truncate: whether a text that is longer than the model reads is cut at its end; else it is refused.
            timeout: seconds, for this call.

        Raises:
            TidemillError: the call failed.
        """
        request = requests.embed(model, texts, dimensions, truncate)
        return requests.embeddings(self._call(self._inference.Embed, request, None, timeout))

    def generate(
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
        """Writes an answer.

        Args:
            model: its name.
            text: what the model was trained on; its own prompt is put around it.
            messages: a conversation instead, as it is: `Message`s or pairs of role and content.
            sampling: how tokens are chosen.
            user: whose request it is: the same user meets the same version of the model.
            store: False keeps nothing of prompt and answer, also where the model's pipeline captures answers.
            timeout: seconds, for this call.

        Raises:
            TidemillError: the call failed.
            ValueError: neither text nor messages are given, or both.
        """
        request = requests.generate(inference.GenerateRequest, model, text, messages, sampling, store)
        return requests.answer(self._call(self._inference.Generate, request, user, timeout))

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
    ) -> Iterator[Piece]:
        """Writes an answer piece by piece; arguments as `generate`. Leaving the loop cancels the answer.

        Raises:
            TidemillError: the call failed; after the first piece nothing is retried.
        """
        request = requests.generate(inference.StreamGenerateRequest, model, text, messages, sampling, store)
        return self._stream(request, user, timeout)

    def feedback(
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
        """Judges an answer; repeated attempts count once.

        Args:
            answer: its id, as the answer or prediction has it.
            rating: from -1 (bad) to 1 (good).
            label: the right label; of a classifier.
            correction: what the answer should have been; of a model that writes.
            signal: what the person did with the answer.
            comment: free text.
            episode: what several answers of one session have in common.
            author: who judged, in your own terms.
            timeout: seconds, for this call.

        Raises:
            TidemillError: the call failed.
        """
        judgement = Judgement(answer, rating, label, correction, signal, comment, episode, author)
        self._call(self._pipeline.RecordFeedback, requests.feedback(judgement), None, timeout)

    def feedback_batch(self, judgements: Sequence[Judgement], *, timeout: float | None = None) -> None:
        """Records many judgements. More than 1000 go out as several requests, each as a whole and with the timeout.

        Raises:
            TidemillError: the call failed.
        """
        for part in requests.parts(judgements, requests.MAX_JUDGEMENTS):
            self._call(self._pipeline.BatchRecordFeedback, requests.feedback_batch(part), None, timeout)

    def close(self) -> None:
        """Closes the connection; calls under way end."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: Callable[..., Any], request: Any, user: str | None, timeout: float | None) -> Any:
        attempts = self._attempts(timeout)
        while True:
            try:
                response = method(request, timeout=attempts.left, metadata=self._target.metadata(user))
            except grpc.RpcError as error:
                time.sleep(attempts.pause(TidemillError.of(error)))
            else:
                attempts.succeeded()
                return response

    def _stream(self, request: Any, user: str | None, timeout: float | None) -> Iterator[Piece]:
        attempts = self._attempts(timeout)
        while True:
            call = self._inference.StreamGenerate(request, timeout=attempts.left, metadata=self._target.metadata(user))
            begun = False
            try:
                for response in call:
                    begun = True
                    yield requests.piece(response)
                attempts.succeeded()
                return
            except grpc.RpcError as error:
                found = TidemillError.of(error)
                if begun:
                    raise found from error
                time.sleep(attempts.pause(found))
            finally:
                call.cancel()
