"""Embeddings of texts by an encoder: the model, what it learns from, and how well texts find their positives."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.training.engine.tasks import pad_right

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

_QUERIES_AT_ONCE = 1024


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Embeddings [batch, hidden] of length 1: the mean of the last hidden states over the tokens of each text.

    Reimers and Gurevych 2019, arXiv:1908.10084.

    Args:
        hidden: [batch, length, hidden].
        mask: 1 where there is a token, [batch, length].
    """
    from torch.nn import functional

    weights = mask[:, :, None].to(hidden.dtype)
    mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    return functional.normalize(mean, dim=-1)


def build_embedder(encoder: nn.Module) -> nn.Module:
    """A module that maps (input_ids, attention_mask), both [batch, length], to embeddings [batch, hidden]."""
    from torch import nn

    class Embedder(nn.Module):
        """The encoder, and its states pooled."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            module: Any = self.encoder
            found = module(input_ids=input_ids, attention_mask=attention_mask)
            return pooled(found.last_hidden_state, attention_mask)

    return Embedder()


@dataclass(frozen=True, slots=True)
class Related:
    """A text, its positive and, unless empty, its hard negative: each with its tokens."""

    text: str
    positive: str
    negative: str
    text_ids: list[int]
    positive_ids: list[int]
    negative_ids: list[int]


class ContrastiveObjective:
    """Cross entropy of each text's positive among the positives and hard negatives of its batch.

    InfoNCE with in-batch negatives (van den Oord et al. 2018, arXiv:1807.03748), as Sentence-Transformers'
    MultipleNegativesRankingLoss. What is a positive of the same text somewhere in the data is left out of those.
    """

    def __init__(
        self, examples: Sequence[Related], pad_token_id: int, *, temperature: float, dimensions: Sequence[int] = ()
    ) -> None:
        """Args:
        examples: what is learnt.
        pad_token_id: fills shorter texts.
        temperature: by which cosines are divided.
        dimensions: narrower widths for which the loss is computed as well (Matryoshka, arXiv:2205.13147).
        """
        self._examples = examples
        self._pad = pad_token_id
        self._temperature, self._dimensions = temperature, dimensions
        self._right = right_answers([each.text for each in examples], [each.positive for each in examples])
        # Batches are of texts of similar length.
        self.lengths: Sequence[int] = [
            max(len(each.text_ids), len(each.positive_ids), len(each.negative_ids)) for each in examples
        ]

    def loss(self, model: nn.Module, indices: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
        """See `Objective.loss`; `model` maps (input_ids, attention_mask) to embeddings [batch, width]."""
        import torch
        from torch.nn import functional

        batch = [self._examples[i] for i in indices]
        hard = [each for each in batch if each.negative]
        candidates = [*(each.positive for each in batch), *(each.negative for each in hard)]
        queries, read = self._embedded(model, [each.text_ids for each in batch], device)
        ids = [*(each.positive_ids for each in batch), *(each.negative_ids for each in hard)]
        answers, also_read = self._embedded(model, ids, device)
        # Its own positive is the row's diagonal.
        masked = [
            [at != own and candidate in self._right[each.text] for at, candidate in enumerate(candidates)]
            for own, each in enumerate(batch)
        ]
        no_negatives = torch.tensor(masked, device=device)  # [batch, candidates]
        targets = torch.arange(len(batch), device=device)
        losses = []
        # In half precision a cosine near 1 has three digits, too few behind a division by the temperature.
        with torch.autocast(device.type, enabled=False):
            for width in (*self._dimensions, queries.shape[-1]):
                left, right = (functional.normalize(each.float()[:, :width], dim=-1) for each in (queries, answers))
                logits = left @ right.T / self._temperature  # [batch, candidates]
                losses.append(functional.cross_entropy(logits.masked_fill(no_negatives, -torch.inf), targets))
        return torch.stack(losses).mean(), read + also_read

    def targets(self, indices: Sequence[int]) -> int:
        """The texts."""
        return len(indices)

    def _embedded(self, model: nn.Module, texts: Sequence[list[int]], device: torch.device) -> tuple[Tensor, int]:
        ids, mask = pad_right(texts, self._pad)
        return model(ids.to(device), mask.to(device)), int(mask.sum())


def right_answers(texts: Sequence[str], positives: Sequence[str]) -> dict[str, set[str]]:
    """All positives of each text."""
    found: dict[str, set[str]] = defaultdict(set)
    for text, positive in zip(texts, positives, strict=True):
        found[text].add(positive)
    return found


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Of one text: the rank of its positive, from 1, and the number of the row whose positive was found first."""

    rank: int
    nearest: int


def retrieved(
    texts: Sequence[str],
    positives: Sequence[str],
    queries: np.ndarray[Any, Any],
    answers: np.ndarray[Any, Any],
    width: int = 0,
) -> list[Retrieved]:
    """Ranks the distinct positives of all rows by their cosine to each text, exactly.

    Other positives of the same text are neither right nor wrong. A positive that is as near as the right one counts as
    nearer, so that a model whose vectors are all equal finds nothing.

    Args:
        texts: one a row.
        positives: likewise.
        queries: embeddings of the texts, float [rows, width].
        answers: embeddings of the positives, likewise.
        width: how many of the first numbers of each embedding count; all when zero.
    """
    import numpy as np

    first: dict[str, int] = {}
    for row, positive in enumerate(positives):
        first.setdefault(positive, row)
    rows = list(first.values())
    column = {positive: at for at, positive in enumerate(first)}
    right = right_answers(texts, positives)
    wide = width or queries.shape[1]
    left, other = (
        each[:, :wide] / np.maximum(np.linalg.norm(each[:, :wide], axis=1, keepdims=True), 1e-12)
        for each in (queries, answers)
    )
    corpus = other[rows].T
    found = []
    for start in range(0, len(texts), _QUERIES_AT_ONCE):
        scores = left[start : start + _QUERIES_AT_ONCE] @ corpus
        for at, row in enumerate(scores, start):
            own = column[positives[at]]
            # What is not a number is near to everything.
            rivals = ~(row < row[own])
            rivals[[column[each] for each in right[texts[at]]]] = False
            found.append(Retrieved(1 + int(rivals.sum()), rows[int(row.argmax())]))
    return found


def packed(vector: Any) -> str:
    """A vector as text for JSON: its 32-bit floats, little-endian, in base64."""
    import numpy as np

    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


def unpacked(vectors: Sequence[str]) -> np.ndarray[Any, Any]:
    """The vectors behind `packed` texts, fp32 [vectors, width]."""
    import numpy as np

    return np.stack([np.frombuffer(base64.b64decode(each), dtype="<f4") for each in vectors])
