"""Trains toy models in one process and in two: `… parallel_program FOLDER`; what was learnt is in files there.

A program of its own, for processes are forked before torch has threads.
"""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from services.training.adapters.checkpoints import CheckpointFolder
from services.training.domain.strategies import OVER_EXAMPLES, STRATEGIES, Strategy
from services.training.domain.training_spec import Method, Optimization
from services.training.engine.classifier import build_classifier
from services.training.engine.loop import Cancelled, Checkpoint, train
from services.training.engine.methods.dpo import Dpo
from services.training.engine.methods.full import Full
from services.training.engine.methods.lora import Lora
from services.training.engine.parallel import Parallel
from services.training.engine.preferences import PreferenceObjective, Preferred
from services.training.engine.tasks import (
    NO_TAG,
    ClassificationObjective,
    CompletionObjective,
    Objective,
    Pair,
    TokenObjective,
)
from services.training.worker.ranks import process_group

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
# Five examples, so that the shares are unequal, and two batches a step.
OPTIONS = Optimization(max_steps=4, batch_size=5, gradient_accumulation=2, learning_rate=0.02, checkpoint_every=1)


def _texts(count: int = 24) -> list[list[int]]:
    draw = random.Random(3)
    return [[draw.randrange(4, 40) for _ in range(draw.randrange(3, 12))] for _ in range(count)]


def _writer(dropout: float) -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(**SIZES | {"num_attention_heads": 4}, num_key_value_heads=2, attention_dropout=dropout)
    )


def _normed_writer() -> nn.Module:
    """It has norms of queries and keys, whose weights all heads share."""
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8))


def _encoder(outputs: int, each_token: bool, dropout: float) -> nn.Module:
    noise: dict[str, Any] = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    encoder = BertModel(BertConfig(**SIZES, **noise))
    return build_classifier(encoder, SIZES["hidden_size"], outputs, seed=1, each_token=each_token)


def _generation(dropout: float) -> tuple[nn.Module, Objective]:
    # Answers of 1 to 8 tokens: a mean over the means of shares would be another loss.
    pairs = [Pair(text[:2], [*text[2:], 1][-(1 + at % 8) :]) for at, text in enumerate(_texts())]
    return _writer(dropout), CompletionObjective(pairs, 0)


def _normed_generation(dropout: float) -> tuple[nn.Module, Objective]:
    return _normed_writer(), _generation(dropout)[1]


def _classification(dropout: float) -> tuple[nn.Module, Objective]:
    texts = _texts()
    return _encoder(3, False, dropout), ClassificationObjective(texts, [sum(text) % 3 for text in texts], 0)


def _tokens(dropout: float) -> tuple[nn.Module, Objective]:
    # Every third text has no tag at all, so shares without one occur.
    tags = [[token % 3 if at % 3 else NO_TAG for token in text] for at, text in enumerate(_texts())]
    return _encoder(3, True, dropout), TokenObjective(_texts(), tags, 0)


def _preferences(dropout: float) -> tuple[nn.Module, Objective]:
    examples = [Preferred(text[:2], [*text[2:], 1], [5, at % 40, 1]) for at, text in enumerate(_texts())]
    return _writer(dropout), PreferenceObjective(examples, 0, beta=0.1, label_smoothing=0.0)


@dataclass(frozen=True)
class Case:
    """What is trained."""

    task: Callable[[float], tuple[nn.Module, Objective]]
    method: Method
    strategies: tuple[Strategy, ...] = OVER_EXAMPLES


CASES = {
    "classification-full": Case(_classification, Full()),
    "classification-lora": Case(_classification, Lora(r=4)),
    "tokens-full": Case(_tokens, Full()),
    "generation-full": Case(_generation, Full(), STRATEGIES),
    "generation-lora": Case(_generation, Lora(r=4), STRATEGIES),
    "normed-generation-full": Case(_normed_generation, Full(), ("single", "tp")),
    "generation-dora": Case(_generation, Lora(r=4, use_dora=True), ("single", "ddp")),
    "preferences-dpo": Case(_preferences, Dpo(r=4), ("single", "ddp")),
}
RESUMED = {"ddp": "generation-lora", "fsdp": "classification-full", "tp": "generation-lora"}
"""By strategy, what is trained with dropout, once in one go and once interrupted after two steps."""


def learn(case: Case, parallel: Parallel, folder: Path, *, dropout: float = 0.0, stop_after: int = 0) -> None:
    """Trains, from the newest checkpoint in the folder, and stores each step's checkpoint and the model at the end."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model, objective = case.task(dropout)
    if parallel.rank:
        # Base weights are read from one file, but what the method adds is drawn by each process.
        torch.manual_seed(9)
    if hasattr(model, "encoder"):
        model.encoder = case.method.adapt(model.encoder)
        model.head.requires_grad_(True)
    else:
        model = case.method.adapt(model)
    checkpoints = CheckpointFolder(folder / "checkpoints")
    steps: list[int] = []

    def keep(checkpoint: Checkpoint) -> None:
        checkpoints.save(checkpoint)
        state = {f"weights/{name}": value.contiguous() for name, value in checkpoint.weights.items()}
        state |= {f"optimizer/{name}": value.contiguous() for name, value in checkpoint.optimizer.items()}
        save_file(state, folder / f"step-{checkpoint.step}.safetensors")

    try:
        outcome = train(
            model,
            objective,
            OPTIONS,
            device=torch.device("cpu"),
            parallel=parallel,
            resume=checkpoints.newest(),
            on_step=lambda progress: steps.append(progress.step),
            on_checkpoint=keep,
            should_stop=lambda: bool(stop_after) and len(steps) == stop_after,
        )
    except Cancelled:
        return
    if not parallel.rank:
        (folder / "losses.json").write_text(json.dumps([outcome.losses, outcome.tokens]))
        save_file({name: weight.detach() for name, weight in model.named_parameters()}, folder / "model.safetensors")


def in_processes(folder: Path, strategy: Strategy, work: Callable[[Parallel], None]) -> None:
    """Does the work in one new process, or in two of a group."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "store").unlink(missing_ok=True)
    count, children = 1 if strategy == "single" else 2, []
    for rank in range(count):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                parallel = Parallel(strategy, count, rank)
                if count == 1:
                    work(parallel)
                else:
                    with process_group(folder, parallel, "cpu"):
                        work(parallel)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0] * count, f"{folder.name}: {codes}"


def main() -> None:
    """See the module."""
    # Once for all forks.
    import_module("peft")
    folder = Path(sys.argv[1])
    for name, case in CASES.items():
        for strategy in case.strategies:
            place = folder / name / strategy
            in_processes(place, strategy, lambda parallel, c=case, p=place: learn(c, parallel, p))  # type: ignore[misc]
    for strategy in STRATEGIES[1:]:
        case = CASES[RESUMED[strategy]]
        for kind, stops in (("whole", [0]), ("resumed", [2, 0])):
            place = folder / "resume" / strategy / kind
            for stop in stops:
                in_processes(
                    place,
                    strategy,
                    lambda parallel, c=case, p=place, s=stop: learn(c, parallel, p, dropout=0.2, stop_after=s),  # type: ignore[misc]
                )


if __name__ == "__main__":
    main()
