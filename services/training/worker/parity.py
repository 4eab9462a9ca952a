"""Whether builds answer as the trained model did: its answers to the hold-out beside theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SAME = "same_answer_as_merged"
"""Share of the hold-out to which a build gives the answer of the tuned model, merged and before it was built."""


@dataclass(frozen=True, slots=True)
class Parity:
    """A figure of each build, by the build's name; `name` is that of the figure, in manifests and in reports."""

    name: str
    of: Mapping[str, float]
    warnings: tuple[str, ...] = ()

    @property
    def figures(self) -> dict[str, float]:
        """As figures of a report."""
        return {f"{self.name}_{build}": value for build, value in self.of.items()}


def agreement(tuned: Sequence[object], builds: Mapping[str, Sequence[object]]) -> dict[str, float]:
    """The share of equal answers of each build, from 0 to 1."""
    return {
        name: sum(a == b for a, b in zip(answers, tuned, strict=True)) / len(tuned) for name, answers in builds.items()
    }


COSINE = "cosine_to_merged"
"""Mean cosine of a build's embeddings of the hold-out to those of the tuned model, merged and before it was built."""
_MIN_COSINE = 0.9999


def vector_parity(tuned: np.ndarray[Any, Any], builds: Mapping[str, np.ndarray[Any, Any]]) -> Parity:
    """How near the embeddings of builds are to the tuned model's; all fp32 [texts, width], of length 1.

    The fp32 build has the merged model's weights, so the lowest of its cosines is what a warning is about.
    """
    cosines = {name: (vectors * tuned).sum(axis=1) for name, vectors in builds.items()}
    of = {name: round(float(each.mean()), 6) for name, each in cosines.items()}
    lowest = float(cosines["fp32"].min()) if "fp32" in cosines else 1.0
    if lowest >= _MIN_COSINE:
        return Parity(COSINE, of)
    return Parity(
        COSINE,
        of,
        (
            f"compression.variants: an embedding by the fp32 build has a cosine of {lowest:.4f} to the merged model's, "
            f"and {_MIN_COSINE} is usual at least; compare them before you publish it.",
        ),
    )


def parity_warnings(same: Mapping[str, float]) -> tuple[str, ...]:
    """A warning if the fp32 build, whose weights are the merged model's, answers anything differently."""
    share = same.get("fp32", 1.0)
    if share == 1.0:
        return ()
    return (
        f"compression.variants: the fp32 build answers {1 - share:.1%} of the hold-out differently than the merged "
        "model; compare their answers before you publish it.",
    )
