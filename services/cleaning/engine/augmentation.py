"""Compiles an augmentation, and makes the variants of one text."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from services.cleaning.domain.augmentation import AugmentSpec, LabelFilter, SimilarityFilter
from services.cleaning.domain.recipe import RecipeError
from services.cleaning.domain.record import RecordKey
from services.cleaning.engine.augmenter import Augmenter, Draw, Tables, VariantMaker
from services.cleaning.engine.registry import Registry
from services.cleaning.engine.rewriter import Rewriter, ServedModel
from services.cleaning.engine.words import Terms, split_words
from services.kit.ids import content_digest

logger = logging.getLogger(__name__)

MAX_PER_RECORD = 16
_PLACE = "augment"


@dataclass(frozen=True, slots=True)
class Draft:
    """A variant to be: its number from 1, who makes it, and its text, which a rewriter's has not yet.

    No one makes it if nothing can be changed; the text of an augmenter that failed is empty.
    """

    number: int
    maker: VariantMaker[Any] | None = None
    text: str = ""


class Servers(Protocol):
    """The addresses that models may be asked at."""

    def refused(self, model: ServedModel) -> str:
        """Why its address is not asked; empty if it is."""
        ...


@dataclass(frozen=True, slots=True)
class Augmentation:
    """An augmentation ready to run. `digest` covers everything that its variants depend on, the tables included."""

    spec: AugmentSpec
    digest: str
    canonical: Sequence[Mapping[str, Any]]
    makers: Sequence[Augmenter[Any] | Rewriter[Any]]
    terms: Terms

    def chosen(self, record: RecordKey) -> bool:
        """Whether a record of the training part gets variants."""
        return Draw(str(self.spec.seed), *record).below(1_000_000) < self.spec.rate * 1_000_000

    def drafts(self, record: RecordKey, text: str) -> Iterator[Draft]:
        """The variants of a record.

        Args:
            record: source and id of the parent.
            text: its cleaned text.
        """
        words = split_words(text, self.terms)
        for number in range(1, self.spec.per_record + 1):
            draw = Draw(str(self.spec.seed), *record, str(number))
            for maker in draw.some(self.makers, len(self.makers)):
                if isinstance(maker, Rewriter):
                    yield Draft(number, maker)
                    break
                try:
                    made = maker.vary(words, draw)
                except Exception:
                    # A bug of an augmenter on one text must not stop the others.
                    logger.exception("the augmenter %s failed on a record", maker.name)
                    made = ""
                if made is not None and made != text:
                    yield Draft(number, maker, made)
                    break
            else:
                yield Draft(number)


def compile_augmentation(
    registry: Registry, spec: AugmentSpec, tables: Tables, terms: Collection[str], servers: Servers | None = None
) -> Augmentation:
    """Builds an augmentation.

    Args:
        registry: finds the augmenters.
        spec: names them.
        tables: what they look words up in.
        terms: which no augmenter changes, beside those of the spec.
        servers: the addresses that models may be asked at; none when None.

    Raises:
        RecipeError: an augmenter, a parameter or a number is unknown or invalid, a table is not there, or an address
            may not be asked.
    """
    if not spec.operators:
        raise RecipeError.at(f"{_PLACE}.operators", f"names no augmenter; known: {', '.join(registry.names)}")
    if not 1 <= spec.per_record <= MAX_PER_RECORD:
        raise RecipeError.at(f"{_PLACE}.per_record", f"must be from 1 to {MAX_PER_RECORD}, not {spec.per_record}")
    if not 0 < spec.rate <= 1:
        raise RecipeError.at(f"{_PLACE}.rate", f"must be above 0 and at most 1, not {spec.rate:g}")
    makers = [registry.build(each, number, f"{_PLACE}.operators", tables) for number, each in enumerate(spec.operators)]
    asked = [
        (f"operators[{number}].params.address", each.server)
        for number, each in enumerate(makers)
        if isinstance(each, Rewriter)
    ]
    asked += [(f"{name}.address", server_of(check)) for name, check in _checks(spec).items()]
    for field, server in asked:
        if server is not None and (why := servers.refused(server) if servers else "is not asked by this service"):
            raise RecipeError.at(f"{_PLACE}.{field}", why)
    canonical = [
        {
            "name": maker.name,
            "version": maker.version,
            "params": maker.params.model_dump(mode="json"),
            **({"tables": dict(maker.digests)} if maker.digests else {}),
        }
        for maker in makers
    ]
    kept = sorted({*spec.keep, *terms})
    checks = {name: asdict(check) for name, check in _checks(spec).items()}
    digest = content_digest([canonical, spec.seed, spec.per_record, spec.rate, kept, *([checks] if checks else [])])
    return Augmentation(spec, digest, canonical, makers, Terms(kept))


def _checks(spec: AugmentSpec) -> dict[str, SimilarityFilter | LabelFilter]:
    checks = {"similarity": spec.similarity, "labels": spec.labels}
    return {name: check for name, check in checks.items() if check is not None}


def server_of(check: SimilarityFilter | LabelFilter) -> ServedModel:
    """The model that a check asks."""
    return ServedModel(check.address, check.model, check.key_env)
