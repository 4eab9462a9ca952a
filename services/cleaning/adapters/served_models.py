"""Asks the models that write variants: language models over HTTP, behind the wall of `TIDEMILL_AUGMENT_HOSTS`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from services.cleaning.engine.rewriter import (
    CUT_OFF,
    EMPTY,
    REFUSED,
    Answer,
    Comparison,
    Labelling,
    Query,
    ServedModel,
)
from services.kit.model_calls import ModelAddress, ModelCalls, UnusableResponseError
from services.kit.network_rules import NetworkRules

_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class ServedModels:
    """Implements `services.cleaning.app.ports.Models` and `services.cleaning.engine.augmentation.Servers`."""

    def __init__(self, rules: NetworkRules, secret: Callable[[str], str | None], timeout_s: float) -> None:
        """Opens no connection.

        Args:
            rules: of `TIDEMILL_AUGMENT_HOSTS`.
            secret: an environment variable.
            timeout_s: of a call.
        """
        self._calls = ModelCalls(rules, secret, use="AUGMENT", service="cleaning", hosts="TIDEMILL_AUGMENT_HOSTS")
        self._timeout_s = timeout_s

    def refused(self, model: ServedModel) -> str:
        """See the protocol."""
        return self._calls.refused(_address(model))

    async def ask(self, question: Query) -> Answer:
        """See the port."""
        model = question.model
        assert isinstance(model, ServedModel)
        path, body, read = _call(question, model.model)
        try:
            return read(await self._calls.post(_address(model), path, body, self._timeout_s))
        except UnusableResponseError as error:
            return Answer("", REFUSED, str(error))
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            return Answer("", REFUSED, f"Its response to {path} has not the expected form.")


def _call(question: Query, model: str) -> tuple[str, Mapping[str, Any], Callable[[Any], Answer]]:
    """Path and body of a request, and what reads the response."""
    if isinstance(question, Comparison):
        return "/embeddings", {"model": model, "input": [question.parent, question.text]}, _cosine
    if isinstance(question, Labelling):
        body = {"model": model.removeprefix("models/"), "texts": [question.text], "store": False}
        return "/v1/predict", body, _label
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question.prompt}],
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "seed": question.sampling_seed,
        "store": False,
    }
    return "/chat/completions", body, _written


def _address(model: ServedModel) -> ModelAddress:
    return ModelAddress(model.address, model.key_env)


def _written(found: Any) -> Answer:
    choice = found["choices"][0]
    words = choice["message"]["content"]
    text = words.strip() if isinstance(words, str) else ""
    if _NO_TEXT.search(text):
        return Answer("", REFUSED, "Its answer has a NUL or a lone surrogate.")
    if choice.get("finish_reason") == "length":
        return Answer("", CUT_OFF, "Its answer has more tokens than max_tokens.")
    return Answer(text) if text else Answer("", EMPTY, "Its answer is empty.")


def _cosine(found: Any) -> Answer:
    one, other = (
        [float(value) for value in item["embedding"]] for item in sorted(found["data"], key=lambda item: item["index"])
    )
    lengths = math.hypot(*one) * math.hypot(*other)
    if not 0 < lengths < math.inf:
        raise ValueError("an embedding has no direction")
    cosine = sum(a * b for a, b in zip(one, other, strict=True)) / lengths
    return Answer(f"{cosine:.6f}")


def _label(found: Any) -> Answer:
    label = found["predictions"][0]["label"]
    if not isinstance(label, str) or not label or _NO_TEXT.search(label):
        raise ValueError("the label is not a text")
    return Answer(label)
