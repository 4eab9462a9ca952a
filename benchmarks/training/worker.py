"""One training in a process of its own: `python -m benchmarks.training.worker SETTING [FOLDER OF PEERS]`.

Prints a `Measured` as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.machine import resident_bytes
from benchmarks.training.cases import CASES, OPTIONS, RATES, TASK, WARMUP, Case, Measured, Setting, read_pairs
from services.training.domain.training_spec import Optimization
from services.training.engine.attention import SHORT, plain_attention
from services.training.engine.generation import reference_losses
from services.training.engine.loop import train
from services.training.engine.method_capabilities import AddsTokens, pad_token
from services.training.engine.methods import make_method
from services.training.engine.tasks import CompletionObjective, Pair

_CPU = torch.device("cpu")


class Side(Protocol):
    """A trainer that has its model and data."""

    def train(self) -> int:
        """Trains, and returns the tokens read, padding left out."""
        ...

    def tuned(self) -> Any:
        """The model that answers."""
        ...


class Tidemill:
    """The loop of a run, as its worker calls it."""

    def __init__(self, setting: Setting, model: Any, tokenizer: Any, pairs: list[Pair]) -> None:
        case = CASES[setting.case]
        self._method: Any = make_method(case.method, OPTIONS[case.method])
        if isinstance(self._method, AddsTokens):
            self._method.add_embeddings(model, tokenizer, TASK)
        self._model = self._method.adapt(model)
        self._objective = CompletionObjective(pairs, pad_token(tokenizer))
        if max(self._objective.lengths) <= SHORT:
            plain_attention(self._model)
        if not case.grouped:
            # As far as the order of batches knows, no text is longer than another.
            self._objective.lengths = [1] * len(pairs)
        self._options = Optimization(
            max_steps=setting.steps,
            batch_size=setting.batch,
            learning_rate=RATES[case.method],
            warmup_ratio=WARMUP,
            precision=case.precision,
            seed=setting.seed,
            checkpoint_every=setting.steps,
        )

    def train(self) -> int:
        return train(self._model, self._objective, self._options, device=_CPU).tokens

    def tuned(self) -> Any:
        return self._method.merge(self._model)


class Trl:
    """TRL's SFTTrainer, with PEFT's adapters where the method is LoRA."""

    def __init__(self, setting: Setting, model: Any, tokenizer: Any, pairs: list[Pair]) -> None:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        case = CASES[setting.case]
        rows = {
            "input_ids": [each.prompt + each.target for each in pairs],
            "completion_mask": [[0] * len(each.prompt) + [1] * len(each.target) for each in pairs],
        }
        adapter = None
        if case.method == "lora":
            options = OPTIONS["lora"]
            adapter = peft.LoraConfig(
                r=options["r"], lora_alpha=options["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="tidemill-bench-")
        config = SFTConfig(
            output_dir=self._folder.name,
            max_steps=setting.steps,
            per_device_train_batch_size=setting.batch,
            learning_rate=RATES[case.method],
            lr_scheduler_type="cosine",
            warmup_steps=max(1, round(setting.steps * WARMUP)),
            max_grad_norm=1.0,
            weight_decay=Optimization(max_steps=1).weight_decay,
            completion_only_loss=True,
            max_length=None,
            gradient_checkpointing=case.checkpointing,
            bf16=case.precision == "bf16",
            use_cpu=True,
            seed=setting.seed,
            include_num_input_tokens_seen="non_padding",
            logging_steps=setting.steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        self._trainer: Any = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_dict(rows),
            processing_class=tokenizer,
            peft_config=adapter,
        )

    def train(self) -> int:
        self._trainer.train()
        return int(self._trainer.state.num_input_tokens_seen)

    def tuned(self) -> Any:
        model = self._trainer.model
        return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def measure(setting: Setting) -> Measured:
    """Trains the case of a setting, and measures the loss of what was held out."""
    torch.set_num_threads(setting.threads)
    torch.manual_seed(setting.seed)
    pairs, holdout = read_pairs(Path(setting.pairs))
    tokenizer: Any = AutoTokenizer.from_pretrained(setting.tokenizer, trust_remote_code=False)
    side = _side(CASES[setting.case])
    # What the first step of any training loads is not this one's.
    little: Any = torch.nn.Linear(64, 64)
    torch.optim.AdamW(little.parameters(), foreach=True)
    little(torch.ones(8, 64)).sum().backward()
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    made: Any = AutoModelForCausalLM
    model = made.from_pretrained(setting.base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    trainer = side(setting, model, tokenizer, pairs)
    del model
    began, used = time.perf_counter(), _processor_s()
    tokens = trainer.train()
    seconds, processor = time.perf_counter() - began, _processor_s() - used
    peak = resident_bytes("VmHWM") - before
    losses = reference_losses(trainer.tuned().eval(), holdout, pad_token_id=pad_token(tokenizer), device=_CPU)
    loss = sum(each.nats for each in losses) / sum(each.tokens for each in losses)
    return Measured(tokens, seconds, processor, peak, loss)


def _side(case: Case) -> type[Tidemill] | type[Trl]:
    """The class, with its libraries loaded, whose size is not the training's."""
    if case.side == "tidemill":
        return Tidemill
    import datasets  # noqa: F401
    import trl

    _ = trl.SFTConfig, trl.SFTTrainer
    return Trl


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.path[:0] = sys.argv[2:]
    print(json.dumps(asdict(measure(Setting.read(Path(sys.argv[1]))))))
