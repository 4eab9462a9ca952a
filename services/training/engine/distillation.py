"""Distillation: a student learns the outputs of a teacher (Hinton et al. 2015, arXiv:1503.02531).

It learns the logits, softened by a temperature, and the hidden states behind each of its layers (Sun et al. 2019,
arXiv:1908.09355). No label of a record is read, so that a student makes the teacher's mistakes and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from services.training.engine.tasks import pad_right

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class DistillationObjective:
    """Divergence of the logits plus the relative squared error of the hidden states.

    Args:
        teacher: a classifier, see `services.training.engine.classifier`; it is not trained.
        texts: token ids.
        pad: id of the token that fills shorter rows.
        ends: for each layer of the student, the number of the teacher's layer whose output it learns.
        temperature: both models' logits are divided by it.
        independent: whether each label has a probability of its own, instead of a share of 1.
    """

    def __init__(
        self,
        teacher: nn.Module,
        texts: Sequence[list[int]],
        pad: int,
        ends: Sequence[int],
        temperature: float,
        *,
        independent: bool = False,
    ) -> None:
        self._independent = independent
        self._teacher: Any = teacher
        self._texts = texts
        self._pad = pad
        self._ends = list(ends)
        self._temperature = temperature
        self.lengths: Sequence[int] = [len(text) for text in texts]

    def loss(self, model: nn.Module, indices: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
        """See `services.training.engine.tasks.Objective`; `model` is the student."""
        import torch
        from torch.nn import functional

        ids, mask = pad_right([self._texts[at] for at in indices], self._pad)
        ids, mask = ids.to(device), mask.to(device)
        with torch.no_grad():
            wanted, states = outputs(self._teacher, ids, mask)
        found, own = outputs(model, ids, mask)
        # [batch, labels], or the real tokens' [tokens, labels].
        if found.dim() == 3:
            wanted, found = wanted[mask.bool()], found[mask.bool()]
        if self._independent:
            # Of each label, that it is assigned and that it is not: [batch * labels, 2].
            wanted, found = (torch.stack([each, torch.zeros_like(each)], -1).flatten(0, 1) for each in (wanted, found))
        soft = self._temperature
        loss = soft**2 * functional.kl_div(
            functional.log_softmax(found.float() / soft, -1),
            functional.log_softmax(wanted.float() / soft, -1),
            log_target=True,
            reduction="batchmean",
        )
        for at, end in enumerate(self._ends, 1):
            # The first state is that of the embeddings, before any layer. Filling tokens are left out.
            target, state = states[end + 1][mask.bool()].float(), own[at][mask.bool()].float()
            loss = loss + functional.mse_loss(state, target) / target.square().mean() / len(self._ends)
        return loss, int(mask.sum())

    def targets(self, indices: Sequence[int]) -> int:
        """The texts; a student learns in one process."""
        return len(indices)


def outputs(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A classifier's logits, and the hidden states [batch, length, hidden] of embeddings and layers."""
    found = model.encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    return model.logits(found.last_hidden_state), found.hidden_states
