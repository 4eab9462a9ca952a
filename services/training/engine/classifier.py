"""An encoder with a classification head over its first token, or over each token."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from services.training.engine.embedding import pooled

if TYPE_CHECKING:
    from torch import nn


def build_classifier(
    encoder: nn.Module, hidden_size: int, labels: int, *, seed: int, each_token: bool = False, ordered: bool = False
) -> nn.Module:
    """A module that maps (input_ids, attention_mask), both [batch, length], to logits [batch, labels].

    With `each_token` to logits [batch, length, labels]. With `ordered` the logits are those of `ordered_head`.
    """
    import torch
    from torch import Tensor, nn

    class EncoderClassifier(nn.Module):
        """The encoder, and a linear head on its first token."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            generator = torch.Generator().manual_seed(seed)
            self.head = ordered_head(hidden_size, labels) if ordered else nn.Linear(hidden_size, labels)
            weighted: Any = self.head.severity if ordered else self.head
            with torch.no_grad():
                weighted.weight.normal_(0.0, 0.02, generator=generator)
                if not ordered:
                    weighted.bias.zero_()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            module: Any = self.encoder
            return self.logits(module(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state)

        def logits(self, hidden: Tensor) -> Tensor:
            """[batch, length, hidden] -> [batch, labels], or [batch, length, labels] with `each_token`."""
            logits: Tensor = self.head(hidden if each_token else hidden[:, 0])
            return logits

    return EncoderClassifier()


def ordered_head(hidden_size: int, labels: int) -> nn.Module:
    """A head for ordered labels: the proportional odds model (McCullagh 1980, "Regression models for ordinal data").

    A text has one severity, and between each label and the next there is a cut: the probability that its label is at
    most the k-th is the logistic function of cut k minus the severity. Maps [batch, hidden] to log probabilities
    [batch, labels], which are logits, too, for their softmax is the probabilities: training, builds and serving are
    those of any classifier.
    """
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    class OrderedHead(nn.Module):
        """Cuts ascend whatever is learnt: the first one, and the positive distances between the others."""

        def __init__(self) -> None:
            super().__init__()
            self.severity = nn.Linear(hidden_size, 1, bias=False)
            # Evenly spread around zero.
            self.first = nn.Parameter(torch.tensor([-(labels - 2) / 2]))
            self.distances = nn.Parameter(torch.full((labels - 2,), math.log(math.e - 1)))

        def forward(self, hidden: Tensor) -> Tensor:
            severity = self.severity(hidden)
            gaps = functional.softplus(self.distances)
            cuts = torch.cat([self.first, self.first + gaps.cumsum(0)])
            below = functional.logsigmoid(cuts - severity)  # log P(at most k), [batch, labels - 1]
            above = functional.logsigmoid(severity - cuts)  # log P(more than k)
            # s(b) - s(a) = s(b) s(-a) (1 - exp(a - b)), with the logistic function s and cuts a < b.
            between = below[:, 1:] + above[:, :-1] + torch.log(-torch.expm1(-gaps))
            return torch.cat([below[:, :1], between, above[:, -1:]], -1)

    return OrderedHead()


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
