"""Batched greedy answers of a torch model, and its loss on reference answers, for evaluation.

It knows token ids only; `services.kit.prompts` builds the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from services.training.engine.linears import onednn_linears
from services.training.engine.metrics import TextLoss
from services.training.engine.tasks import CompletionObjective, Pair

if TYPE_CHECKING:
    import torch
    from torch import nn

# A decoding step reads every weight once, whatever the batch size, so large batches are cheaper.
_BATCH = 24


def greedy_answers(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    device: torch.device,
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """The first line of one answer per prompt, in the order of the prompts."""
    import torch

    # By length, so that a batch has little padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, str] = {}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    generate: Any = model.generate
    with torch.inference_mode(), onednn_linears(model):
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            width = max(len(prompts[i]) for i in chosen)
            # [batch, width], padded on the left, so that all answers continue at the same column.
            ids = torch.full((len(chosen), width), pad, dtype=torch.long)
            mask = torch.zeros((len(chosen), width), dtype=torch.long)
            for row, i in enumerate(chosen):
                ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask[row, width - len(prompts[i]) :] = 1
            output = generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=pad,
                eos_token_id=tokenizer.eos_token_id,
            )
            for row, i in enumerate(chosen):
                answers[i] = first_line(tokenizer.decode(output[row, width:], skip_special_tokens=True))
            on_progress(len(answers))
    return [answers[i] for i in range(len(prompts))]


def reference_losses(
    model: nn.Module, pairs: Sequence[Pair], *, pad_token_id: int, device: torch.device
) -> list[TextLoss]:
    """Cross entropy of each pair's target after its prompt (teacher-forced), in the order of the pairs."""
    import torch

    objective = CompletionObjective(pairs, pad_token_id)
    losses = []
    with torch.inference_mode(), onednn_linears(model):
        for number, pair in enumerate(pairs):
            mean, _ = objective.loss(model, [number], device)
            losses.append(TextLoss(float(mean) * len(pair.target), len(pair.target)))
    return losses


def first_line(answer: str) -> str:
    """The first line that is not blank, which is what callers of a one-line task use."""
    return next((line.strip() for line in answer.splitlines() if line.strip()), "")
