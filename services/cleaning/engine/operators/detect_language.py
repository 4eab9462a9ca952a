"""Writes the language of a text to an attribute."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from services.cleaning.engine.batch import Batch
from services.cleaning.engine.languages import likeliest_language
from services.cleaning.engine.operator import FIELD_NAME, Params, RecordOperator


class DetectLanguageParams(Params):
    """`field`: the attribute for the language, as ISO 639-1 has it, such as `en` and `zh`.

    It is not written where the probability of the likeliest language is below `min_confidence`, or where the text has
    fewer than `min_chars` characters, too few to recognise a language by.
    """

    field: str = Field("language", pattern=FIELD_NAME)
    min_confidence: float = Field(0.5, ge=0, le=1)
    min_chars: int = Field(20, ge=1)


class DetectLanguage(RecordOperator[DetectLanguageParams]):
    """Writes the language of a text to an attribute, by py3langid, whose model of 97 languages is part of the package.

    An attribute that is there already stays: whoever sent the record knows better.
    """

    params_type = DetectLanguageParams

    @property
    def columns(self) -> Sequence[str]:
        """The field."""
        return (self.params.field,)

    def apply(self, batch: Batch) -> None:
        """Drops nothing."""
        for text, attributes in zip(batch.texts, batch.attributes, strict=True):
            if attributes.get(self.params.field) or len(text) < self.params.min_chars:
                continue
            language, confidence = likeliest_language(text)
            if confidence >= self.params.min_confidence:
                attributes[self.params.field] = language
                batch.attributes_changed = True
