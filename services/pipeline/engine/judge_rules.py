"""Rates an answer by rules. Regular expressions are RE2's: time is linear in the text, whatever the pattern."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import re2

from services.masking.personal_data import tokens_of
from services.pipeline.domain.judge import JudgeRules, Opinion

if TYPE_CHECKING:
    from services.masking.personal_data import PersonalData

_MEMORY_BYTES = 1 << 20
_SURE = 0.5
_MIN_LETTERS = 20
# More says nothing more about the language.
_LANGUAGE_CHARS = 4000


class PatternError(ValueError):
    """A pattern that RE2 does not accept."""


@lru_cache(maxsize=256)
def pattern_of(pattern: str) -> Any:
    """The compiled pattern.

    Raises:
        PatternError: RE2 does not accept it.
    """
    options = re2.Options()
    options.max_mem = _MEMORY_BYTES
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0] if error.args else ""
        text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        raise PatternError(f"is not a valid RE2 regular expression ({text})") from error


def languages() -> frozenset[str]:
    """The languages that are recognised, by ISO 639-1."""
    return frozenset(_identifier().labels)


def rate(rules: JudgeRules, prompt: str, answer: str, tokens: Mapping[str, str] | None = None) -> Opinion:
    """The rating, with the first rule that does not hold as its reason.

    Args:
        rules: what the answer must be like.
        prompt: what was asked, masked.
        answer: what was answered, masked.
        tokens: what masks replaced personal data by, by kind, where it is not the default.
    """
    broken = _broken(rules, prompt, answer, tokens or {})
    return Opinion(broken is None, broken or "All rules hold.")


def _broken(rules: JudgeRules, prompt: str, answer: str, tokens: Mapping[str, str]) -> str | None:
    if rules.json and (why := _not_json(answer)):
        return why
    if len(answer) < rules.min_chars:
        return f"It has {len(answer)} characters, below {rules.min_chars}."
    if rules.max_chars and len(answer) > rules.max_chars:
        return f"It has {len(answer)} characters, above {rules.max_chars}."
    if rules.matches and not pattern_of(rules.matches).search(answer):
        return "The pattern of `matches` is not in it."
    if rules.forbids and pattern_of(rules.forbids).search(answer):
        return "The pattern of `forbids` is in it."
    if rules.no_personal_data and (kind := _leaked(prompt, answer, tokens)):
        return f"It has personal data that was not asked with: {kind.replace('_', ' ')}."
    if rules.language and (found := _language(answer)) not in ("", rules.language):
        return f"Its language is {found}, not {rules.language}."
    return None


def _not_json(answer: str) -> str:
    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        json.loads(answer, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        return f"It is not valid JSON: {error}."
    return ""


def _leaked(prompt: str, answer: str, tokens: Mapping[str, str]) -> str:
    """The kind of personal data that is in an answer more often than in what was asked; empty if there is none.

    What was captured is masked already, so the masks' tokens count, and what they were set to leave.
    """
    for kind, token in tokens_of(tokens).items():
        if answer.count(token) > prompt.count(token):
            return kind
    detector = _detector()
    known = {prompt[span.start : span.end] for span in detector.find(prompt)}
    return next((span.kind for span in detector.find(answer) if answer[span.start : span.end] not in known), "")


def _language(answer: str) -> str:
    """The language; empty where the text is too short or too mixed to recognise it."""
    text = answer[:_LANGUAGE_CHARS]
    if sum(char.isalpha() for char in text) < _MIN_LETTERS and text.isascii():
        return ""
    found, sure = _identifier().classify(text)
    return str(found) if sure >= _SURE else ""


@lru_cache(maxsize=1)
def _detector() -> PersonalData:
    from services.masking.personal_data import PersonalData

    return PersonalData()


@lru_cache(maxsize=1)
def _identifier() -> Any:
    # Seconds to load, so at its first use.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
