"""Says a text in other words, by a served language model."""

from __future__ import annotations

from typing import Final

from pydantic import Field, field_validator

from services.cleaning.engine.rewriter import Rewriter, RewriterParams, ServedModel

_PLACE: Final = "{text}"
_PROMPT: Final = (
    "Say the following text in other words. Keep its language, its meaning, its tone, every number, and every part in "
    "square brackets as it is. Reply with the new text only.\n\n{text}"
)


class ParaphraseParams(RewriterParams):
    """`address` and `model`: an OpenAI-compatible URL before `/chat/completions`, and the model's name there.

    `prompt`: what it is asked, with `{text}` where the text belongs. `key_env`: environment variable of the cleaning
    service with the key. `temperature`: 0 for the most probable words. `max_tokens`: of an answer. `max_calls`: limit
    of the questions for one version of a data set. `private`: whether texts of the data class `private` may go to
    another machine.
    """

    address: str = Field(min_length=1, max_length=1024)
    model: str = Field(min_length=1, max_length=256)
    prompt: str = Field(_PROMPT, min_length=1, max_length=8000)

    @field_validator("prompt")
    @classmethod
    def _has_place(cls, prompt: str) -> str:
        if _PLACE not in prompt:
            raise ValueError(f"must have {_PLACE} where the text belongs")
        return prompt


class Paraphrase(Rewriter[ParaphraseParams]):
    """Has a served language model say the text in other words."""

    params_type = ParaphraseParams

    @property
    def server(self) -> ServedModel:
        """See the base class."""
        return ServedModel(self.params.address, self.params.model, self.params.key_env)

    def ask(self, step: int, text: str) -> tuple[ServedModel, str]:
        """See the base class."""
        return self.server, self.params.prompt.replace(_PLACE, text)
