"""Whether builds answer as the trained model did: its answers to the hold-out beside theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SAME = "same_answer_as_merged"
"""Share of the hold-out to which a build gives the answer of the tuned model, merged and before it was built."""


def agreement(tuned: Sequence[object], builds: Mapping[str, Sequence[object]]) -> dict[str, float]:
    """The share of equal answers of each build, from 0 to 1."""
    return {
        name: sum(a == b for a, b in zip(answers, tuned, strict=True)) / len(tuned) for name, answers in builds.items()
    }


def figures(same: Mapping[str, float]) -> dict[str, float]:
    """The shares as figures of a report."""
    return {f"{SAME}_{name}": share for name, share in same.items()}


def parity_warnings(same: Mapping[str, float]) -> tuple[str, ...]:
    """A warning if the fp32 build, whose weights are the merged model's, answers anything differently."""
    share = same.get("fp32", 1.0)
    if share == 1.0:
        return ()
    return (
        f"compression.variants: the fp32 build answers {1 - share:.1%} of the hold-out differently than the merged "
        "model; compare their answers before you publish it.",
    )
