"""Answers as bytes, for a store outside this process."""

from __future__ import annotations

import sys
from array import array
from base64 import b64decode, b64encode
from typing import Any

import orjson

from services.serving.app.answer_cache import Kept
from services.serving.domain.answer import Embedded, FinishReason, Piece, Scored, Token

# Changes with the form, so that no release reads another's.
_FORM = 1


def encode(value: Kept) -> bytes:
    """The answer as JSON."""
    match value:
        case Scored():
            content: list[Any] = ["scored", list(value.scores)]
        case Embedded():
            content = ["embedded", b64encode(_little(value.values).tobytes()).decode()]
        case _:
            tokens = [[token.text, token.logprob] for token in value.tokens]
            content = ["piece", value.text, str(value.finish_reason), value.completion_tokens, tokens]
    return orjson.dumps([_FORM, value.prompt_tokens, value.truncated_tokens, *content])


def decode(data: bytes) -> Kept | None:
    """The answer; None if this release does not know its form, or it is damaged."""
    try:
        form, prompt, truncated, kind, *content = orjson.loads(data)
        if form != _FORM:
            return None
        match kind:
            case "scored":
                [scores] = content
                return Scored(prompt, truncated, tuple(map(float, scores)))
            case "embedded":
                [text] = content
                return Embedded(prompt, truncated, _little(array("f", b64decode(text, validate=True))))
            case "piece":
                text, reason, completion, tokens = content
                found = tuple(Token(str(spelt), float(logprob)) for spelt, logprob in tokens)
                return Piece(str(text), FinishReason(reason), int(prompt), int(completion), found, int(truncated))
    except (ValueError, TypeError, KeyError):
        return None
    return None


def _little(values: array[float]) -> array[float]:
    """32-bit floats, least significant byte first, or those of this machine of such."""
    if sys.byteorder == "big":
        values = array("f", values)
        values.byteswap()
    return values
