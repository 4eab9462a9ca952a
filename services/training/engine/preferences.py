"""Learning from people's preferences: the losses of DPO and KTO, and the objectives that use them.

Both compare the model with its state before training. That reference is the same model with its adapters disabled, so
it needs no memory of its own; each example's reference is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.kit.errors import FailedPreconditionError
from services.training.engine.tasks import Pair, target_logits

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_GOOD, _BAD = {"true"}, {"false"}


@dataclass(frozen=True, slots=True)
class Preferred:
    """Two answers to one prompt, as token ids: `chosen` was preferred to `rejected`."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True, slots=True)
class Rated:
    """An answer to a prompt, and whether people found it good."""

    pair: Pair
    good: bool


def dpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, equation 7), mean over the batch.

    Args:
        chosen: log probability of each chosen answer, minus the reference's, [batch].
        rejected: the same for each rejected answer, [batch].
        beta: how strongly the model is kept close to the reference.
        label_smoothing: share of preferences assumed to be wrong (Mitchell 2023), below 0.5.
    """
    from torch.nn import functional

    margin = beta * (chosen - rejected)
    right, wrong = functional.logsigmoid(margin), functional.logsigmoid(-margin)
    return -((1 - label_smoothing) * right + label_smoothing * wrong).mean()


def kto_loss(
    ratios: Tensor, good: Tensor, mismatched: Tensor, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306, equation 8), mean over the batch.

    Args:
        ratios: log probability of each answer, minus the reference's, [batch].
        good: whether it was rated good, [batch].
        mismatched: like `ratios`, for answers to other prompts, [batch]. Its mean estimates the divergence from the
            reference; no gradient flows through it.
        beta: how strongly the model is kept close to the reference.
        desirable_weight: weight of good answers.
        undesirable_weight: weight of bad answers.
    """
    import torch

    divergence = mismatched.detach().mean().clamp(min=0)
    gains = 1 - torch.sigmoid(beta * (ratios - divergence))
    losses = 1 - torch.sigmoid(beta * (divergence - ratios))
    return torch.where(good, desirable_weight * gains, undesirable_weight * losses).mean()


class _Reference:
    """Log probabilities of answers, minus those of the model without its adapters."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id
        self._known: dict[object, float] = {}

    def ratios(
        self, model: Any, keys: Sequence[object], pairs: Sequence[Pair], device: torch.device
    ) -> tuple[Tensor, int]:
        """The ratios, [pairs], and the number of tokens that were read; `keys` identify the pairs in the cache."""
        import torch

        unknown = [at for at, key in enumerate(keys) if key not in self._known]
        if unknown:
            # The reference is computed without dropout. So it draws no random numbers, and a resumed run, which may
            # compute it again, draws the same ones for training.
            training = model.training
            model.eval()
            with torch.no_grad(), model.disable_adapter():
                before, _ = answer_log_probs(model, [pairs[at] for at in unknown], self._pad, device)
            model.train(training)
            self._known.update(zip((keys[at] for at in unknown), before.tolist(), strict=True))
        found, read = answer_log_probs(model, pairs, self._pad, device)
        return found - torch.tensor([self._known[key] for key in keys], device=device), read


class PreferenceObjective:
    """DPO over preferred answers; see `services.training.engine.tasks.Objective`."""

    def __init__(
        self, examples: Sequence[Preferred], pad_token_id: int, *, beta: float, label_smoothing: float
    ) -> None:
        self._examples, self._beta, self._smoothing = examples, beta, label_smoothing
        self._reference = _Reference(pad_token_id)
        self.lengths: Sequence[int] = [2 * len(e.prompt) + len(e.chosen) + len(e.rejected) for e in examples]

    def loss(self, model: nn.Module, indices: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
        """See `Objective.loss`; `model` is a causal language model with adapters of peft."""
        chosen, rejected, read = self._ratios(model, indices, device)
        return dpo_loss(chosen, rejected, beta=self._beta, label_smoothing=self._smoothing), read

    def targets(self, indices: Sequence[int]) -> int:
        """The preferences."""
        return len(indices)

    def accuracy(self, model: nn.Module, device: torch.device) -> list[float]:
        """For each example 1.0 if training favoured the chosen answer over the rejected one, else 0.0."""
        import torch

        with torch.no_grad():
            found = [self._ratios(model, [number], device) for number in range(len(self._examples))]
        return [float(chosen.item() > rejected.item()) for chosen, rejected, _ in found]

    def _ratios(self, model: nn.Module, indices: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, int]:
        examples = [self._examples[i] for i in indices]
        pairs = [Pair(e.prompt, e.chosen) for e in examples] + [Pair(e.prompt, e.rejected) for e in examples]
        keys = [(i, side) for side in ("chosen", "rejected") for i in indices]
        found, read = self._reference.ratios(model, keys, pairs, device)
        return found[: len(examples)], found[len(examples) :], read


class RatingObjective:
    """KTO over rated answers; see `services.training.engine.tasks.Objective`. A batch needs at least two examples."""

    def __init__(
        self,
        examples: Sequence[Rated],
        pad_token_id: int,
        *,
        beta: float,
        desirable_weight: float,
        undesirable_weight: float,
    ) -> None:
        self._examples, self._beta = examples, beta
        self._weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
        self._reference, self._pad = _Reference(pad_token_id), pad_token_id
        self.lengths: Sequence[int] = [len(e.pair.prompt) + len(e.pair.target) for e in examples]

    def loss(self, model: nn.Module, indices: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
        """See `Objective.loss`; `model` is a causal language model with adapters of peft."""
        import torch

        examples = [self._examples[i] for i in indices]
        ratios, read = self._reference.ratios(model, list(indices), [e.pair for e in examples], device)
        # Each prompt with the answer to the next one.
        other = [*indices[1:], indices[0]]
        swapped = [Pair(e.pair.prompt, self._examples[at].pair.target) for e, at in zip(examples, other, strict=True)]
        keys = list(zip(indices, other, strict=True))
        with torch.no_grad():
            mismatched, more = self._reference.ratios(model, keys, swapped, device)
        good = torch.tensor([e.good for e in examples], device=device)
        return kto_loss(ratios, good, mismatched, beta=self._beta, **self._weights), read + more

    def targets(self, indices: Sequence[int]) -> int:
        """The ratings; each is compared with others of its batch, so shares of one would learn something else."""
        return len(indices)

    def accuracy(self, model: nn.Module, device: torch.device) -> list[float]:
        """For each example 1.0 if training made a good answer likelier or a bad answer less likely, else 0.0."""
        import torch

        right = []
        with torch.no_grad():
            for number, example in enumerate(self._examples):
                ratios, _ = self._reference.ratios(model, [number], [example.pair], device)
                right.append(float((ratios.item() > 0) == example.good))
        return right


def answer_log_probs(model: Any, pairs: Sequence[Pair], pad_token_id: int, device: torch.device) -> tuple[Tensor, int]:
    """Summed log probability of each pair's target after its prompt, [pairs], and the number of tokens read."""
    import torch
    from torch.nn import functional

    logits, targets, read = target_logits(model, pairs, pad_token_id, device)
    nats = functional.cross_entropy(logits, targets, reduction="none")
    rows = torch.tensor([row for row, pair in enumerate(pairs) for _ in pair.target], device=device)
    return -torch.zeros(len(pairs), device=device).index_add(0, rows, nats), read


def is_good(rating: str, record: str, field: str) -> bool:
    """Whether a rating says that an answer was good: `true`, or a number above zero.

    Raises:
        FailedPreconditionError: it is neither a number nor true or false; names the record.
    """
    text = rating.strip().lower()
    if text in _GOOD | _BAD:
        return text in _GOOD
    try:
        return float(text) > 0
    except ValueError:
        raise FailedPreconditionError(
            f"{field}: the rating {rating!r} of record {record} is neither a number nor true or false.",
            reason="RATING_UNREADABLE",
            metadata={"record": record},
        ) from None


def with_value(rows: Sequence[Mapping[str, str]], column: str, field: str) -> list[Mapping[str, str]]:
    """The rows with a value in a column: not every record was rated.

    Raises:
        FailedPreconditionError: no row has one.
    """
    found = [row for row in rows if row[column].strip()]
    if not found:
        raise FailedPreconditionError(
            f"{field}: column {column!r} is empty in all {len(rows)} records.",
            reason="PREFERENCES_MISSING",
            metadata={"column": column},
        )
    return found
