"""An encoder with a classification head over its first token, or over each token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from services.training.engine.embedding import pooled

if TYPE_CHECKING:
    from torch import nn


def build_classifier(
    encoder: nn.Module, hidden_size: int, labels: int, *, seed: int, each_token: bool = False
) -> nn.Module:
    """A module that maps (input_ids, attention_mask), both [batch, length], to logits [batch, labels].

    With `each_token` to logits [batch, length, labels].
    """
    import torch
    from torch import Tensor, nn

    class EncoderClassifier(nn.Module):
        """The encoder, and a linear head on its first token."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.head = nn.Linear(hidden_size, labels)
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                self.head.weight.normal_(0.0, 0.02, generator=generator)
                self.head.bias.zero_()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            module: Any = self.encoder
            return self.logits(module(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state)

        def logits(self, hidden: Tensor) -> Tensor:
            """[batch, length, hidden] -> [batch, labels], or [batch, length, labels] with `each_token`."""
            logits: Tensor = self.head(hidden if each_token else hidden[:, 0])
            return logits

    return EncoderClassifier()


def with_embedding(classifier: nn.Module) -> nn.Module:
    """A module that maps what the classifier reads to its logits and to the text's embedding [batch, hidden].

    The embedding is `pooled` from the hidden states that the head reads.
    """
    from torch import Tensor, nn

    class WithEmbedding(nn.Module):
        """Runs the encoder once for both."""

        def __init__(self) -> None:
            super().__init__()
            self.classifier = classifier

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
            module: Any = self.classifier
            hidden = module.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return module.logits(hidden), pooled(hidden, attention_mask)

    return WithEmbedding()
