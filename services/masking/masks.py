"""Masks by name, as a pipeline file lists them under `capture.masks`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from services.kit.errors import FieldViolation, InvalidArgumentError
from services.masking.personal_data import MASKED_KINDS, PersonalData, wrong_tokens
from services.masking.pii_patterns import KINDS

Mask = Callable[[str], str]
"""Replaces the parts of a text that must not be stored."""


@dataclass(frozen=True, slots=True)
class MaskSpec:
    """A mask by its name, with its parameters."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)


DEFAULT_MASKS: Final = (MaskSpec("mask_pii"),)
"""The masks of a capture that names none, and of corrections to answers whose model is not known."""


def mask_of(specs: Sequence[MaskSpec], place: str = "masks") -> Mask:
    """All masks in sequence; the default ones if none is named, so that no text is ever stored unmasked.

    Args:
        specs: the masks, in order.
        place: their path in the request, for the error.

    Raises:
        InvalidArgumentError: a mask or a parameter is unknown or invalid; the violation names it.
    """
    masks = [_build(spec, f"{place}[{number}]") for number, spec in enumerate(specs or DEFAULT_MASKS)]

    def apply(text: str) -> str:
        for mask in masks:
            text = mask(text)
        return text

    return apply


def _build(spec: MaskSpec, place: str) -> Mask:
    if spec.name != "mask_pii":
        raise _wrong(f"{place}.name", f"{spec.name!r} is not a mask; use mask_pii")
    unknown = sorted(set(spec.params) - {"kinds", "tokens"})
    if unknown:
        raise _wrong(f"{place}.params.{unknown[0]}", "is not a parameter of mask_pii; it has kinds and tokens")
    kinds, tokens = spec.params.get("kinds", list(MASKED_KINDS)), spec.params.get("tokens", {})
    if not isinstance(kinds, Sequence) or isinstance(kinds, str) or not kinds or not set(kinds) <= set(KINDS):
        raise _wrong(f"{place}.params.kinds", f"must be a list of {', '.join(KINDS)}")
    if not isinstance(tokens, Mapping) or not all(isinstance(token, str) for token in tokens.values()):
        raise _wrong(f"{place}.params.tokens", "must map kinds to texts")
    if wrong := wrong_tokens(tokens):
        raise _wrong(f"{place}.params.tokens", wrong)
    return _personal_data(tuple(kinds), tuple(sorted(tokens.items()))).mask


@lru_cache(maxsize=64)
def _personal_data(kinds: tuple[Any, ...], tokens: tuple[tuple[str, str], ...]) -> PersonalData:
    return PersonalData(kinds, dict(tokens))


def _wrong(where: str, description: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{where}: {description}", reason="INVALID_MASK", violations=[FieldViolation(where, description)]
    )
