"""Asks the models that write variants: language models over HTTP, behind the wall of `TIDEMILL_AUGMENT_HOSTS`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from services.cleaning.engine.rewriter import Answer, Question, ServedModel
from services.kit.model_calls import ModelAddress, ModelCalls, UnusableResponseError
from services.kit.network_rules import NetworkRules

# Why an answer is not used: the model's server refuses the text or says nothing; it is empty; its end is missing.
_REFUSED, _EMPTY, _CUT_OFF = "refused", "empty", "cut_off"
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

    async def ask(self, question: Question) -> Answer:
        """See the port."""
        body = {
            "model": question.model.model,
            "messages": [{"role": "user", "content": question.prompt}],
            "max_tokens": question.max_tokens,
            "temperature": question.temperature,
            "seed": question.sampling_seed,
            "store": False,
        }
        try:
            found = await self._calls.post(_address(question.model), "/chat/completions", body, self._timeout_s)
        except UnusableResponseError as error:
            return Answer("", _REFUSED, str(error))
        return _read(found)


def _address(model: ServedModel) -> ModelAddress:
    return ModelAddress(model.address, model.key_env)


def _read(found: Any) -> Answer:
    try:
        choice = found["choices"][0]
        words, reason = choice["message"]["content"], choice.get("finish_reason")
    except (AttributeError, KeyError, IndexError, TypeError):
        return Answer("", _REFUSED, "Its response has no choices[0].message.content.")
    text = words.strip() if isinstance(words, str) else ""
    if _NO_TEXT.search(text):
        return Answer("", _REFUSED, "Its answer has a NUL or a lone surrogate.")
    if reason == "length":
        return Answer("", _CUT_OFF, "Its answer has more tokens than max_tokens.")
    return Answer(text) if text else Answer("", _EMPTY, "Its answer is empty.")
