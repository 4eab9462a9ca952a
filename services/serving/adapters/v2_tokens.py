"""Counts the tokens of KServe V2 calls, whose responses have them as tensors."""

from __future__ import annotations

from array import array
from typing import Any

from services.serving.adapters.triton_tensors import TOKEN_COUNTS
from services.serving.app.ports import Spend

_READ, _WRITTEN, _END = TOKEN_COUNTS[0], "completion_tokens", "finish_reason"


class TokenCount:
    """The tokens of one caller's call; `close` it at its end."""

    def __init__(self, spend: Spend, outputs: tuple[str, ...]) -> None:
        """Args:
        spend: counts tokens.
        outputs: of the model that have counts of tokens.
        """
        self._spend, self._outputs = spend, outputs
        self._hidden: dict[str, frozenset[str]] = {}
        self._open: dict[str, int] = {}

    @classmethod
    def of_texts(cls, spend: Spend) -> TokenCount:
        """Of a model that reads texts."""
        return cls(spend, (_READ,))

    @classmethod
    def of_answers(cls, spend: Spend) -> TokenCount:
        """Of a model that writes."""
        return cls(spend, (_READ, _WRITTEN, _END))

    def ask(self, request: Any) -> None:
        """Adds the outputs that are needed to a request that names others."""
        if not request.outputs:
            return
        named = {output.name for output in request.outputs}
        missing = [name for name in self._outputs if name not in named]
        self._hidden[request.id] = frozenset(missing)
        for name in missing:
            request.outputs.add(name=name)

    def read(self, response: Any) -> None:
        """Counts the tokens of a response, and takes out what its caller did not ask for."""
        raws = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=False))
        if _READ in raws:
            self._open[response.id] = sum(sum(array("i", raws.get(name, b""))) for name in (_READ, _WRITTEN))
            # A tensor of one text: four bytes of length, and the reason.
            if _END not in self._outputs or len(raws.get(_END, b"")) > 4:
                self._spend(self._open.pop(response.id))
        if hidden := self._hidden.get(response.id):
            kept = [at for at, output in enumerate(response.outputs) if output.name not in hidden]
            outputs = [response.outputs[at] for at in kept]
            contents = [response.raw_output_contents[at] for at in kept]
            del response.outputs[:], response.raw_output_contents[:]
            response.outputs.extend(outputs)
            response.raw_output_contents.extend(contents)

    def close(self) -> None:
        """Counts what was read and written of answers that did not end."""
        if left := sum(self._open.values()):
            self._spend(left)
        self._open.clear()
