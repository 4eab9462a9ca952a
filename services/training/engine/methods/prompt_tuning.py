"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691): only vectors before the prompt are learnt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from services.training.domain.strategies import Strategy
from services.training.domain.tasks import GenerationTask
from services.training.engine.method_capabilities import Footprint
from services.training.engine.model_shape import Shape
from services.training.engine.virtual_tokens import add_rows, virtual_ids, write_tokenizer

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class PromptTuning:
    """`virtual_tokens` vectors, initialised with the embeddings of `init_text`, or of the task's instruction."""

    virtual_tokens: int = 20
    init_text: str = ""
    kind: Literal["prompt_tuning"] = "prompt_tuning"

    TASKS: ClassVar[tuple[str, ...]] = ("generation",)
    STRATEGIES: ClassVar[tuple[Strategy, ...]] = ("single", "ddp")

    def adapt(self, model: nn.Module) -> nn.Module:
        """See `Method.adapt`; adds rows for the virtual tokens to the model's embeddings if it has none yet."""
        from peft import TrainableTokensConfig, get_peft_model

        causal_lm: Any = model
        ids = getattr(causal_lm.config, "virtual_token_ids", None)
        if ids is None:
            size = int(causal_lm.config.vocab_size)
            ids = list(range(size, size + self.virtual_tokens))
            add_rows(causal_lm, ids, range(min(size, self.virtual_tokens)))
        name = next(n for n, module in model.named_modules() if module is causal_lm.get_input_embeddings())
        config = TrainableTokensConfig(token_indices=ids, target_modules=[name])
        adapted: nn.Module = get_peft_model(causal_lm, config)
        return adapted

    def merge(self, model: nn.Module) -> nn.Module:
        """See `Method.merge`."""
        adapted: Any = model
        merged: nn.Module = adapted.merge_and_unload()
        return merged

    def footprint(self, shape: Shape) -> Footprint:
        """See `Plannable.footprint`."""
        return Footprint(self.virtual_tokens * shape.hidden, frozen_blocks=True, copied_embeddings=True)

    def write_tokenizer(self, base: Path, target: Path) -> None:
        """See `AddsTokens.write_tokenizer`; the chat template begins with the virtual tokens."""
        write_tokenizer(base, target, self.virtual_tokens)

    def add_embeddings(self, model: Any, tokenizer: Any, task: GenerationTask) -> None:
        """See `AddsTokens.add_embeddings`; they begin as those of `init_text`, or of the task's instruction."""
        ids = virtual_ids(tokenizer, self.virtual_tokens)
        instruction = self.init_text or task.prompt_template.replace("{text}", "")
        add_rows(model, ids, tokenizer.encode(instruction, add_special_tokens=False) or ids)


METHOD = PromptTuning
