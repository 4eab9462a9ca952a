"""When a larger classifier is asked of a text, because the small one is not sure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cascade:
    """A model's larger one, and below which confidence it is asked."""

    larger: str
    """Name of the model."""
    min_confidence: float
    """Calibrated probability of the most probable label, above 0 and at most 1."""
    temperature: float = 1.0
    """Calibrates the probabilities, see `confidence`."""

    def is_sure(self, scores: Iterable[float]) -> bool:
        """Whether the small model's answer with these probabilities stands."""
        return confidence(scores, self.temperature) >= self.min_confidence


def confidence(scores: Iterable[float], temperature: float) -> float:
    """The calibrated probability of the most probable label.

    Temperature scaling, Guo et al. 2017, "On calibration of modern neural networks": the logits are divided by the
    temperature. Of probabilities that is the power 1/temperature, scaled to add up to 1.

    Args:
        scores: probabilities of all labels.
        temperature: above 0; 1 changes nothing.
    """
    found = list(scores)
    highest = max(found)
    return float(1 / sum((score / highest) ** (1 / temperature) for score in found))
