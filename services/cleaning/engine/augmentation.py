"""Compiles an augmentation, and makes the variants of one text."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.cleaning.domain.augmentation import AugmentSpec
from services.cleaning.domain.recipe import RecipeError
from services.cleaning.domain.record import RecordKey
from services.cleaning.engine.augmenter import Augmenter, Draw, Tables
from services.cleaning.engine.registry import Registry
from services.cleaning.engine.words import Terms, split_words
from services.kit.ids import content_digest

logger = logging.getLogger(__name__)

MAX_PER_RECORD = 16
_PLACE = "augment"


@dataclass(frozen=True, slots=True)
class Augmentation:
    """An augmentation ready to run. `digest` covers everything that its variants depend on, the tables included."""

    spec: AugmentSpec
    digest: str
    canonical: Sequence[Mapping[str, Any]]
    augmenters: Sequence[Augmenter[Any]]
    terms: Terms

    def chosen(self, record: RecordKey) -> bool:
        """Whether a record of the training part gets variants."""
        return Draw(str(self.spec.seed), *record).below(1_000_000) < self.spec.rate * 1_000_000

    def variants(self, record: RecordKey, text: str) -> Iterator[tuple[int, str, str]]:
        """Number from 1, augmenter and text of each variant.

        Both are empty if no augmenter can change anything; the text alone is where the augmenter failed.

        Args:
            record: source and id of the parent.
            text: its cleaned text.
        """
        words = split_words(text, self.terms)
        for number in range(1, self.spec.per_record + 1):
            draw = Draw(str(self.spec.seed), *record, str(number))
            for augmenter in draw.some(self.augmenters, len(self.augmenters)):
                try:
                    made = augmenter.vary(words, draw)
                except Exception:
                    # A bug of an augmenter on one text must not stop the others.
                    logger.exception("the augmenter %s failed on a record", augmenter.name)
                    made = ""
                if made is not None and made != text:
                    yield number, augmenter.name, made
                    break
            else:
                yield number, "", ""


def compile_augmentation(registry: Registry, spec: AugmentSpec, tables: Tables, terms: Collection[str]) -> Augmentation:
    """Builds an augmentation.

    Args:
        registry: finds the augmenters.
        spec: names them.
        tables: what they look words up in.
        terms: which no augmenter changes, beside those of the spec.

    Raises:
        RecipeError: an augmenter, a parameter or a number is unknown or invalid, or a table is not there.
    """
    if not spec.operators:
        raise RecipeError.at(f"{_PLACE}.operators", f"names no augmenter; known: {', '.join(registry.names)}")
    if not 1 <= spec.per_record <= MAX_PER_RECORD:
        raise RecipeError.at(f"{_PLACE}.per_record", f"must be from 1 to {MAX_PER_RECORD}, not {spec.per_record}")
    if not 0 < spec.rate <= 1:
        raise RecipeError.at(f"{_PLACE}.rate", f"must be above 0 and at most 1, not {spec.rate:g}")
    augmenters = [
        registry.build(each, number, f"{_PLACE}.operators", tables) for number, each in enumerate(spec.operators)
    ]
    canonical = [
        {
            "name": augmenter.name,
            "version": augmenter.version,
            "params": augmenter.params.model_dump(mode="json"),
            **({"tables": dict(augmenter.digests)} if augmenter.digests else {}),
        }
        for augmenter in augmenters
    ]
    kept = sorted({*spec.keep, *terms})
    digest = content_digest([canonical, spec.seed, spec.per_record, spec.rate, kept])
    return Augmentation(spec, digest, canonical, augmenters, Terms(kept))
