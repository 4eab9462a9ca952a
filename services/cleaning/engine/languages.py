"""Which language a text seems to be in, by py3langid; its model is part of its package."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

_READ_CHARACTERS: Final = 2000


def likeliest_language(text: str) -> tuple[str, float]:
    """The likeliest language (ISO 639-1) of the beginning of a text, and its probability, 0 to 1."""
    code, probability = _identifier().classify(text[:_READ_CHARACTERS])
    return str(code), float(probability)


@cache
def languages() -> tuple[str, ...]:
    """The languages that can be recognised, sorted."""
    return tuple(sorted(map(str, _identifier().nb_classes)))


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    # Without the few of three letters: short texts in standard Chinese would count as Wu or Cantonese.
    identifier.set_languages([code for code in identifier.nb_classes if len(code) == 2])
    return identifier
