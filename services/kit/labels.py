"""Which labels a model of multi-label classification assigns; for training and for serving.

It goes with each published version into Triton; it therefore imports nothing of Tidemill's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

THRESHOLD = 0.5
"""Score from which a label is assigned: training moves the scores of each label so that its own threshold is here."""


def probabilities(logits: Any) -> Any:
    """The probability of each label by itself, fp32: the logistic function of an array, without overflow."""
    import numpy as np

    return (0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float32)))).astype(np.float32)


def assigned(labels: Sequence[str], scores: Sequence[float]) -> list[str]:
    """The labels whose score reaches the threshold, the highest score first.

    Args:
        labels: all of the model.
        scores: one for each label, 0 to 1.
    """
    found = sorted(range(len(labels)), key=lambda at: -scores[at])
    return [labels[at] for at in found if scores[at] >= THRESHOLD]


def labels_answer(labels: Iterable[str]) -> str:
    """Assigned labels as an answer that can be compared: equal for equal sets."""
    return json.dumps(sorted(labels), ensure_ascii=False)
