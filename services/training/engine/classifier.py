"""An encoder with a classification head over its first token, or over each token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
            hidden = module(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            if each_token:
                tagged: Tensor = self.head(hidden)  # [batch, length, hidden] -> [batch, length, labels]
                return tagged
            logits: Tensor = self.head(hidden[:, 0])  # [batch, length, hidden] -> [batch, labels]
            return logits

    return EncoderClassifier()
