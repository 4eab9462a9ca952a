"""The sizes of a transformer, from its configuration alone: no weights are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.kit.errors import FieldViolation, InvalidArgumentError

_DECODER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer of a block, by the end of its name, with its width before and after."""

    name: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Shape:
    """A transformer by its sizes; `key_width` is the width of all keys of a token, over all heads.

    `encoder` models are BERT's kind: learnt positions, biases, a feed-forward layer without a gate, dropout of
    `dropout` on scores and outputs. Others are Llama's kind; `query_width` is `hidden` unless the configuration names
    a head's width.
    """

    layers: int
    hidden: int
    feed_forward: int
    vocabulary: int
    heads: int
    key_width: int
    tied: bool = False
    query_width: int = 0
    encoder: bool = False
    positions: int = 0
    dropout: float = 0.0

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Shape:
        """The shape in a `config.json` in Hugging Face's layout.

        Raises:
            InvalidArgumentError: it is not the configuration of such a model.
        """
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            width = int(config.get("head_dim") or hidden // heads)
            encoder = "type_vocab_size" in config
            positions = int(config.get("max_position_embeddings") or 0) + int(config.get("type_vocab_size") or 0)
            return cls(
                int(config["num_hidden_layers"]),
                hidden,
                int(config["intermediate_size"]),
                int(config["vocab_size"]),
                heads,
                int(config.get("num_key_value_heads") or heads) * width,
                bool(config.get("tie_word_embeddings", False)) and not encoder,
                heads * width,
                encoder,
                positions if encoder else 0,
                float(config.get("attention_probs_dropout_prob") or 0.0) if encoder else 0.0,
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            kind = type(error).__name__
            wrong = f"its config.json does not describe a transformer that can be planned ({kind}: {error})"
            raise InvalidArgumentError(
                f"spec.base_model: {wrong}.",
                reason="SHAPE_UNKNOWN",
                violations=[FieldViolation("spec.base_model", wrong)],
            ) from error

    @property
    def queries(self) -> int:
        """Width of all queries of a token."""
        return self.query_width or self.hidden

    @property
    def linears(self) -> Sequence[Linear]:
        """The linear layers of a block."""
        hidden, wide = self.hidden, self.feed_forward
        if self.encoder:
            square = [Linear(name, hidden, hidden) for name in ("query", "key", "value")]
            return [
                *square,
                Linear("attention.output.dense", hidden, hidden),
                Linear("intermediate.dense", hidden, wide),
                Linear("output.dense", wide, hidden),
            ]
        sizes = [
            (hidden, self.queries),
            (hidden, self.key_width),
            (hidden, self.key_width),
            (self.queries, hidden),
            (hidden, wide),
            (hidden, wide),
            (wide, hidden),
        ]
        return [Linear(name, before, after) for name, (before, after) in zip(_DECODER, sizes, strict=True)]

    @property
    def linear_weights(self) -> int:
        """Weights of the linear layers of all blocks, without biases."""
        return self.layers * sum(each.before * each.after for each in self.linears)

    @property
    def parameters(self) -> int:
        """All weights. Small vectors that only some families have, such as Qwen's biases, are left out."""
        table = self.vocabulary * self.hidden
        if not self.encoder:
            return self.linear_weights + (1 if self.tied else 2) * table + (2 * self.layers + 1) * self.hidden
        biases = self.layers * sum(each.after for each in self.linears)
        norms = (2 * self.layers + 1) * 2 * self.hidden
        pooler = self.hidden * (self.hidden + 1)
        return self.linear_weights + biases + norms + table + self.positions * self.hidden + pooler

    def adapted(self, targets: Sequence[str]) -> Iterator[tuple[Linear, int]]:
        """The linear layers that adapters go to, each with its number; every layer of a block if none is named."""
        for each in self.linears:
            if not targets or any(each.name == name or each.name.endswith(f".{name}") for name in targets):
                yield each, self.layers
        if self.encoder and (not targets or "dense" in targets):
            yield Linear("pooler.dense", self.hidden, self.hidden), 1


SHAPES: Mapping[str, Shape] = {
    "7B": Shape(32, 4096, 11008, 32000, 32, 4096),
    "70B": Shape(80, 8192, 28672, 32000, 64, 1024),
    "123B": Shape(88, 12288, 28672, 32768, 96, 1024),
    "405B": Shape(126, 16384, 53248, 128256, 128, 1024),
}
"""Published models of the sizes that people ask for: Llama 2 7B and 70B, Mistral Large 2, Llama 3.1 405B."""
