"""Virtual tokens of prompt tuning as tokens of the vocabulary: learnt vectors that every prompt begins with.

PEFT keeps such vectors outside the model and puts them before the embedded text. A runtime that takes token ids cannot
do that, so the exported model would answer without them. Here each vector is the embedding of a new special token, and
the chat template writes these tokens before a conversation. The result is the same, and merging, export and serving
need nothing special.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.kit.errors import FieldViolation, InvalidArgumentError

_FIELD = "spec.prompt_tuning"


def token_name(number: int) -> str:
    """The text of a virtual token."""
    return f"<|virtual_{number}|>"


def virtual_ids(tokenizer: Any, count: int) -> list[int]:
    """The ids of the virtual tokens in a tokenizer that `write_tokenizer` wrote."""
    return [int(each) for each in tokenizer.convert_tokens_to_ids([token_name(number) for number in range(count)])]


def write_tokenizer(base: Path, target: Path, count: int) -> None:
    """Writes a base model's tokenizer with virtual tokens, and with a chat template that begins with them.

    Args:
        base: the model's folder.
        target: folder to write to.
        count: number of virtual tokens.

    Raises:
        InvalidArgumentError: the model cannot get virtual tokens.
    """
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(base), trust_remote_code=False)
    template = tokenizer.chat_template
    if template is not None and not isinstance(template, str):
        raise _unsuitable(f"{base.name} has several chat templates; prompt tuning knows models with one or none")
    if template is None:
        template = _plain_template(tokenizer)
    names = [token_name(number) for number in range(count)]
    if taken := sorted(set(names) & set(tokenizer.get_vocab())):
        raise _unsuitable(f"{base.name} already has the token {taken[0]}: it is the result of prompt tuning itself")
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    tokenizer.chat_template = "".join(names) + template
    tokenizer.save_pretrained(str(target))


def _plain_template(tokenizer: Any) -> str:
    """A chat template that does what `services.kit.prompts` does for a model without one."""
    text = "x"
    marked = tokenizer(text)["input_ids"]
    inner = tokenizer(text, add_special_tokens=False)["input_ids"]
    at = next(i for i in range(len(marked)) if marked[i : i + len(inner)] == inner)
    before, after = ("".join(tokenizer.convert_ids_to_tokens(ids)) for ids in (marked[:at], marked[at + len(inner) :]))
    return f"{before}{{% for message in messages %}}{{{{ message['content'] }}}}{{{{ '\\n\\n' }}}}{{% endfor %}}{after}"


def add_rows(model: Any, ids: Sequence[int], like: Sequence[int]) -> None:
    """Adds embeddings for virtual tokens to a causal language model, and their ids to its configuration.

    The output layer gets rows for them, too, each the mean of all rows. By Jensen's inequality the logit of a mean row
    is never the highest, and a virtual token is never likelier than 1 / vocabulary. So the model never answers with
    one, whatever its embedding becomes. Tied embeddings are untied for that.

    Args:
        model: a causal language model of transformers; changed in place.
        ids: token ids of the virtual tokens.
        like: token ids whose embeddings initialise them, repeated as needed.
    """
    import torch
    from torch import nn

    before: Any = model.get_output_embeddings()
    mean = before.weight.detach().float().mean(dim=0).to(before.weight.dtype)  # [hidden]
    size = max(model.config.vocab_size, max(ids) + 1)
    if size != model.config.vocab_size:
        model.resize_token_embeddings(size, mean_resizing=False)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    model.config.tie_word_embeddings = False
    if head.weight is embeddings.weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
    with torch.no_grad():
        for number, row in enumerate(ids):
            embeddings.weight[row] = embeddings.weight[like[number % len(like)]]
            head.weight[row] = mean
            if head.bias is not None:
                head.bias[row] = head.bias.mean()
    model.config.virtual_token_ids = list(ids)


def _unsuitable(why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{_FIELD}: {why}.", reason="METHOD_UNSUITABLE", violations=[FieldViolation(_FIELD, why)]
    )
