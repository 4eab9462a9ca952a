"""Objectives: how a batch of a task becomes a loss. The training loop knows nothing else about a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

NO_TAG = -100
"""Number of the tag of tokens that have none."""


class Objective(Protocol):
    """Loss of a task over prepared examples."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each example."""
        ...

    def loss(self, model: nn.Module, indices: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
        """Mean loss of a batch (a scalar), and the number of tokens that the model read."""
        ...

    def targets(self, indices: Sequence[int]) -> int:
        """Number of what `loss` is the mean over, by which shares of a batch are weighted."""
        ...


@dataclass(frozen=True, slots=True)
class Pair:
    """A tokenised example: `prompt` is read, `target` is learnt."""

    prompt: list[int]
    target: list[int]


class CompletionObjective:
    """Cross entropy over the target tokens only.

    The vocabulary projection is the largest single matrix of a small model (SmolLM2-135M: 28M of 135M weights), so it
    is applied to the target positions only, not to the whole sequence.
    """

    def __init__(self, pairs: Sequence[Pair], pad_token_id: int) -> None:
        self._pairs = pairs
        self._pad = pad_token_id
        self.lengths: Sequence[int] = [len(pair.prompt) + len(pair.target) for pair in pairs]

    def loss(self, model: nn.Module, indices: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
        """See `Objective.loss`; `model` is a causal language model of transformers, with or without adapters."""
        from torch.nn import functional

        logits, targets, read = target_logits(model, [self._pairs[i] for i in indices], self._pad, device)
        return functional.cross_entropy(logits, targets), read

    def targets(self, indices: Sequence[int]) -> int:
        """The target tokens."""
        return sum(len(self._pairs[i].target) for i in indices)


def target_logits(
    model: nn.Module, pairs: Sequence[Pair], pad: int, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """Logits of the positions that predict the targets, fp32 [targets, vocabulary], the targets, and the tokens read.

    Args:
        model: a causal language model of transformers, with or without adapters.
        pairs: prompts and targets; the targets are concatenated in this order.
        pad: id of the token that fills shorter rows.
        device: the model's device.
    """
    import torch

    # The last target token is predicted, never read.
    rows = [(pair.prompt + pair.target)[:-1] for pair in pairs]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    where: list[int] = []
    for number, (row, pair) in enumerate(zip(rows, pairs, strict=True)):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
        first = number * width + len(pair.prompt) - 1
        where.extend(range(first, first + len(pair.target)))
    targets = torch.tensor([token for pair in pairs for token in pair.target], device=device)
    base: Any = getattr(model, "get_base_model", lambda: model)
    causal_lm: Any = base()
    same_length = all(len(row) == width for row in rows)
    hidden = causal_lm.model(
        input_ids=ids.to(device),
        # Without a mask, attention uses its faster causal path.
        attention_mask=None if same_length else mask.to(device),
        use_cache=False,
    ).last_hidden_state  # [batch, width, hidden]
    picked = hidden.reshape(-1, hidden.shape[-1])[torch.tensor(where, device=device)]  # [targets, hidden]
    logits: Tensor = causal_lm.lm_head(picked)  # [targets, vocabulary]
    return logits.float(), targets, sum(map(len, rows))


class _TextObjective(Generic[T]):
    """What the objectives of classifiers share: texts and, of each, what is to be learnt of it."""

    def __init__(self, texts: Sequence[list[int]], wanted: Sequence[T], pad_token_id: int) -> None:
        self._texts, self._wanted, self._pad = texts, wanted, pad_token_id
        self.lengths: Sequence[int] = [len(text) for text in texts]

    def _logits(self, model: nn.Module, indices: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
        """Of some texts, fp32, and how many tokens were read; `model` maps (input_ids, attention_mask) to them."""
        ids, mask = pad_right([self._texts[i] for i in indices], self._pad)
        return model(ids.to(device), mask.to(device)).float(), int(mask.sum())

    def targets(self, indices: Sequence[int]) -> int:
        """The texts."""
        return len(indices)


class ClassificationObjective(_TextObjective[int]):
    """Cross entropy of the labels of texts, of each a number."""

    def loss(self, model: nn.Module, indices: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
        """See `Objective.loss`; the logits are [batch, labels]."""
        import torch
        from torch.nn import functional

        logits, read = self._logits(model, indices, device)
        labels = torch.tensor([self._wanted[i] for i in indices], device=device)
        return functional.cross_entropy(logits, labels), read


class MultiLabelObjective(_TextObjective[Sequence[int]]):
    """Binary cross entropy of each label of texts, of which the numbers of their labels are given."""

    def loss(self, model: nn.Module, indices: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
        """See `Objective.loss`; the logits are [batch, labels]."""
        import torch
        from torch.nn import functional

        logits, read = self._logits(model, indices, device)
        wanted = torch.zeros_like(logits)
        for row, index in enumerate(indices):
            wanted[row, list(self._wanted[index])] = 1.0
        return functional.binary_cross_entropy_with_logits(logits, wanted), read


class TokenObjective(_TextObjective[list[int]]):
    """Cross entropy over the tags of the tokens: the number of each one's tag, or `NO_TAG`, which is not learnt."""

    def loss(self, model: nn.Module, indices: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
        """See `Objective.loss`; the logits are [batch, length, tags]."""
        from torch.nn import functional

        logits, read = self._logits(model, indices, device)
        tags, _ = pad_right([self._wanted[i] for i in indices], NO_TAG)
        loss = functional.cross_entropy(logits.flatten(0, 1), tags.to(device).flatten(), ignore_index=NO_TAG)
        # Of texts without any tag the mean is not a number.
        return loss if self.targets(indices) else logits.sum() * 0.0, read

    def targets(self, indices: Sequence[int]) -> int:
        """The tokens that have a tag."""
        return sum(tag != NO_TAG for i in indices for tag in self._wanted[i])


def pad_right(rows: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both integers [batch, longest]."""
    import torch

    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return ids, mask
