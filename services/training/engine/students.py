"""Students: copies of a tuned encoder with fewer layers, neurons, attention heads or token embeddings.

What is kept is what the tuned model uses most on its training texts; which outputs the student then learns is
`services.training.engine.distillation`. It knows encoders whose blocks are laid out as BERT's (`FAMILIES`).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from services.training.domain.students import Student
from services.training.engine.tasks import pad_right

if TYPE_CHECKING:
    from torch import Tensor, nn

_SEEN_TEXTS, _BATCH = 256, 32


def make_student(teacher: nn.Module, wanted: Student, texts: Sequence[list[int]], *, pad: int, kept: list[int]) -> Any:
    """A student of a classifier, its weights taken from it. Its layers and its head are trainable, its embeddings not.

    Args:
        teacher: see `services.training.engine.classifier`; it is not changed.
        wanted: what stays.
        texts: token ids of training texts, by which neurons, heads and tokens are chosen.
        pad: id of the token that fills shorter rows.
        kept: ids of tokens that keep their embedding anyway; the first one replaces tokens that lose theirs.
    """
    import torch

    original: Any = teacher
    every = original.encoder.encoder.layer
    groups = groups_of(len(every), wanted.layers or len(every))
    with _without(original.encoder.encoder, "layer"):
        student = copy.deepcopy(original)
    student.encoder.encoder.layer = torch.nn.ModuleList(copy.deepcopy(every[group.start]) for group in groups)
    config = student.encoder.config
    config.num_hidden_layers = len(groups)
    # Layers share their configuration with the encoder, and it says what they are after pruning.
    for module in student.encoder.modules():
        if hasattr(module, "config"):
            module.config = config
    if wanted.feed_forward or wanted.heads:
        _prune_blocks(original, student, groups, wanted, texts, pad)
    if wanted.vocabulary:
        tokens = kept_tokens(texts, wanted.vocabulary, kept)
        student.encoder.set_input_embeddings(_embedding_of(student.encoder.get_input_embeddings(), tokens))
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            # It learns the tuned model's outputs, which have no noise to be robust against.
            module.p = 0.0
    student.requires_grad_(False)
    student.encoder.encoder.layer.requires_grad_(True)
    student.head.requires_grad_(True)
    return student


def groups_of(layers: int, kept: int) -> list[range]:
    """The teacher's layers, parted into groups of nearly equal length, one for each layer of the student.

    A layer of the student begins as the first layer of its group and learns the output of the last one.
    """
    return [range(layers * at // kept, layers * (at + 1) // kept) for at in range(kept)]


def kept_tokens(texts: Sequence[list[int]], largest: int, always: Sequence[int]) -> list[int]:
    """Ids of the tokens that keep their embedding: those of `always`, then the most frequent, `largest` in all."""
    counts = Counter(token for text in texts for token in text)
    order = sorted(counts, key=lambda token: (-counts[token], token))
    return list(dict.fromkeys([*always, *order[: max(0, largest)]]))[: max(largest, len(set(always)))]


def input_use(linear: Any) -> tuple[list[Tensor], Any]:
    """Collects how much a linear layer uses each of its inputs.

    Returns:
        A list that gets, for each pass, the mean square of each input [before]; and the handle that ends it.
    """
    found: list[Tensor] = []

    def look(_: Any, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].detach().float().flatten(0, -2).square().mean(0))

    return found, linear.register_forward_pre_hook(look)


def _prune_blocks(
    teacher: Any, student: Any, groups: Sequence[range], wanted: Student, texts: Sequence[list[int]], pad: int
) -> None:
    """Prunes neurons and heads of the student's blocks, by their use in the teacher's blocks that those come from."""
    import torch

    blocks = [teacher.encoder.encoder.layer[group.start] for group in groups]
    seen = [(input_use(block.output.dense), input_use(block.attention.output.dense)) for block in blocks]
    try:
        _read(teacher, texts, pad)
    finally:
        for watched in seen:
            for _, handle in watched:
                handle.remove()
    config = student.encoder.config
    config.intermediate_size = wanted.neurons(config.intermediate_size)
    config.num_attention_heads = wanted.heads or config.num_attention_heads
    for block, ((wide, _), (attended, _)) in zip(student.encoder.encoder.layer, seen, strict=True):
        down = block.output.dense
        neurons = _most_used(_importance(wide, down), config.intermediate_size)
        block.intermediate.dense = _rows(block.intermediate.dense, neurons)
        block.output.dense = _columns(down, neurons)
        inner, out = block.attention.self, block.attention.output.dense
        width = inner.attention_head_size
        heads = _most_used(_importance(attended, out).reshape(-1, width).sum(1), config.num_attention_heads)
        inputs = (heads[:, None] * width + torch.arange(width, device=heads.device)).flatten()
        for name in ("query", "key", "value"):
            setattr(inner, name, _rows(getattr(inner, name), inputs))
        block.attention.output.dense = _columns(out, inputs)
        inner.num_attention_heads, inner.all_head_size = len(heads), len(inputs)


def _read(model: Any, texts: Sequence[list[int]], pad: int) -> None:
    """Lets the model read some of the texts, evenly spread."""
    import torch

    step = max(1, len(texts) // _SEEN_TEXTS)
    chosen = list(texts[::step][:_SEEN_TEXTS])
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(chosen), _BATCH):
            ids, mask = pad_right(chosen[start : start + _BATCH], pad)
            model(ids.to(device), mask.to(device))
    model.train(training)


def _importance(found: Sequence[Tensor], linear: Any) -> Tensor:
    """Of each input of a linear layer: its mean square times the square of its weights [before]."""
    import torch

    used = torch.stack(list(found)).mean(0)
    importance: Tensor = used * linear.weight.detach().float().square().sum(0)
    return importance


def _most_used(importance: Tensor, count: int) -> Tensor:
    """Positions of the largest, in their order [count]."""
    return importance.topk(count).indices.sort().values


def _rows(linear: Any, chosen: Tensor) -> Any:
    """The layer with some of its outputs only."""
    return _linear(linear.weight[chosen], None if linear.bias is None else linear.bias[chosen])


def _columns(linear: Any, chosen: Tensor) -> Any:
    """The layer with some of its inputs only."""
    return _linear(linear.weight[:, chosen], linear.bias)


def _linear(weight: Tensor, bias: Tensor | None) -> Any:
    import torch

    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = torch.nn.Parameter(weight.detach().clone())
    if bias is not None:
        made.bias = torch.nn.Parameter(bias.detach().clone())
    return made


def _embedding_of(table: Any, tokens: Sequence[int]) -> nn.Module:
    """A table of some tokens' embeddings, still read by token id; ids without an embedding get the first one."""
    import torch

    class KeptEmbedding(torch.nn.Module):
        """Looks an id's row up, then the row."""

        row_of: Tensor

        def __init__(self) -> None:
            super().__init__()
            chosen = torch.tensor(list(tokens), device=table.weight.device)
            rows = torch.zeros(table.weight.shape[0], dtype=torch.long, device=table.weight.device)
            rows[chosen] = torch.arange(len(chosen), device=table.weight.device)
            self.register_buffer("row_of", rows, persistent=False)
            self.weight = torch.nn.Parameter(table.weight.detach()[chosen].clone())

        def forward(self, ids: Tensor) -> Tensor:
            """[batch, length] -> [batch, length, width]."""
            return torch.nn.functional.embedding(self.row_of[ids], self.weight)

    return KeptEmbedding()


@contextmanager
def _without(module: Any, name: str) -> Iterator[None]:
    """Within the block the module lacks one of its parts, so that a copy of it does not hold that."""
    import torch

    part = getattr(module, name)
    setattr(module, name, torch.nn.ModuleList())
    try:
        yield
    finally:
        setattr(module, name, part)
