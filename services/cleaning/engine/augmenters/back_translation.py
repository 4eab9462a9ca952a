"""Translates a text into another language and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import Field

from services.cleaning.engine.augmenter import Tables, Translator
from services.cleaning.engine.operator import ParamsError
from services.cleaning.engine.rewriter import Rewriter, RewriterParams, ServedModel

_PROMPT: Final = (
    "Translate the following text into {language}. Keep every number, and every part in square brackets as it is. "
    "Reply with the translation only.\n\n{text}"
)
_BY_FOLDERS, _BY_SERVER = ("there", "back"), ("address", "model", "language", "through")


class BackTranslationParams(RewriterParams):
    """Either `there` and `back`: names of seq2seq models, one for each direction.

    Or `address` and `model`: an OpenAI-compatible URL before `/chat/completions`, and the model's name there;
    `language` of the texts, and the one that they go `through`, such as `Chinese` and `English`; `key_env`: environment
    variable of the cleaning service with the key; `private`: whether texts of the data class `private` may go to
    another machine. `temperature`: 0 for the most probable words. `max_tokens`: of an answer. `max_calls`: limit of the
    questions for one version of a data set; a variant takes two.
    """

    there: str = Field("", max_length=64)
    back: str = Field("", max_length=64)
    address: str = Field("", max_length=1024)
    model: str = Field("", max_length=256)
    language: str = Field("", max_length=64)
    through: str = Field("", max_length=64)
    max_calls: int = Field(1000, ge=2, le=1_000_000)


class BackTranslation(Rewriter[BackTranslationParams]):
    """Translates the text into another language and back, by models of this machine or by a served language model."""

    params_type = BackTranslationParams
    steps = 2

    def __init__(self, params: BackTranslationParams, tables: Tables) -> None:
        super().__init__(params, tables)
        served = bool(params.address or params.model)
        needed, other = (_BY_SERVER, _BY_FOLDERS) if served else (_BY_FOLDERS, _BY_SERVER)
        for name in other:
            if getattr(params, name):
                raise ParamsError(name, f"goes with {' and '.join(other)} only; here are {' and '.join(needed)}")
        for name in needed:
            if not getattr(params, name):
                ways = f"{' and '.join(_BY_FOLDERS)}, or {', '.join(_BY_SERVER[:-1])} and {_BY_SERVER[-1]}"
                raise ParamsError(name, f"is missing: give {ways}")
        self._translators: list[Translator] = []
        if not served:
            for name in _BY_FOLDERS:
                try:
                    self._translators.append(tables.translator(getattr(params, name)))
                except LookupError as error:
                    raise ParamsError(name, str(error.args[0])) from error

    @property
    def digests(self) -> Mapping[str, str]:
        """Of the models of this machine."""
        return {name: translator.digest for name, translator in zip(_BY_FOLDERS, self._translators, strict=False)}

    def ask(self, step: int, text: str) -> tuple[ServedModel | Translator, str]:
        """See the base class."""
        if self._translators:
            return self._translators[step], text
        params = self.params
        language = (params.through, params.language)[step]
        served = ServedModel(params.address, params.model, params.key_env)
        return served, _PROMPT.replace("{language}", language).replace("{text}", text)

    @property
    def server(self) -> ServedModel | None:
        """See the base class."""
        params = self.params
        return None if self._translators else ServedModel(params.address, params.model, params.key_env)
