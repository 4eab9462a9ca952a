"""Whether texts of the training set, or near duplicates of them, are in the hold-out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.cleaning.engine.content_keys import content_keys
from services.cleaning.engine.operators.near_dedup import NearDedup, NearDedupParams

NEAR_THRESHOLD = 0.8


@dataclass(frozen=True, slots=True)
class Contamination:
    """Texts of the hold-out that are in the training set: exactly, and as near duplicates at a threshold."""

    exact_overlap: int
    near_overlap: int
    near_threshold: float


def near_to(holdout: Sequence[str], texts: Sequence[str]) -> Mapping[int, float]:
    """Positions of the texts that are near duplicates of a text of the hold-out, with their similarity."""
    if not holdout or not texts:
        return {}
    finder = NearDedup(NearDedupParams.model_validate({"threshold": NEAR_THRESHOLD}))
    # The hold-out comes first, so that a text is matched with it before others.
    pairs = finder.pairs([*holdout, *texts])
    return {later - len(holdout): similarity for later, earlier, similarity in pairs if later >= len(holdout) > earlier}


def measure_contamination(train: Sequence[str], holdout: Sequence[str]) -> Contamination:
    """Compares the two sides."""
    seen = set(content_keys(train))
    exact = sum(key in seen for key in content_keys(holdout))
    finder = NearDedup(NearDedupParams.model_validate({"threshold": NEAR_THRESHOLD}))
    # Training texts come first, so that a hold-out text is matched with a training text if it resembles one.
    near = 0
    if holdout and train:
        near = sum(position >= len(train) > other for position, other, _ in finder.pairs([*train, *holdout]))
    return Contamination(exact, near, NEAR_THRESHOLD)
