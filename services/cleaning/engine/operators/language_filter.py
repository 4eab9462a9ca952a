"""Rejects texts that are not surely in one of the wanted languages."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from services.cleaning.domain.record import Rejection
from services.cleaning.engine.batch import Column
from services.cleaning.engine.languages import languages, likeliest_language
from services.cleaning.engine.operator import Filter, FilterParams, ParamsError


class LanguageFilterParams(FilterParams):
    """`languages`: as ISO 639-1 has them, such as `en` and `zh`.

    `min_confidence`: the least probability of the language that a text seems to be in. `min_chars`: a shorter text
    stays, because its language cannot be recognised.
    """

    languages: list[str] = Field(min_length=1, max_length=64)
    min_confidence: float = Field(0.5, ge=0, le=1)
    min_chars: int = Field(20, ge=1)


class LanguageFilter(Filter[LanguageFilterParams]):
    """Drops texts in other languages, by py3langid, whose model of 97 languages is part of the package."""

    params_type = LanguageFilterParams

    def __init__(self, params: LanguageFilterParams) -> None:
        super().__init__(params)
        for name in params.languages:
            if name not in languages():
                raise ParamsError("languages", f"contains {name!r}, which is not one of {', '.join(languages())}")
        self._wanted = frozenset(params.languages)

    def judge(self, column: Column) -> Mapping[int, Rejection]:
        """Rejects with the reason `wrong_language` or `unsure_language`."""
        found: dict[int, Rejection] = {}
        for position, text in enumerate(column.texts):
            if len(text) < self.params.min_chars:
                continue
            language, confidence = likeliest_language(text)
            if language not in self._wanted:
                found[position] = Rejection("wrong_language", f"language={language} confidence={confidence:.3f}")
            elif confidence < (limit := self.params.min_confidence):
                detail = f"language={language} confidence={confidence:.3f} < min_confidence={limit:g}"
                found[position] = Rejection("unsure_language", detail)
        return found
