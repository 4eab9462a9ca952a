"""What is trained: the same pairs, model, steps and threads for every case."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from services.training.domain.tasks import GenerationTask
from services.training.engine.tasks import Pair

BASE = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class Case:
    """One training."""

    side: Literal["tidemill", "trl"]
    method: str
    precision: Literal["fp32", "bf16"] = "fp32"
    pairs: Literal["headlines", "mixed"] = "headlines"
    grouped: bool = True
    """Of Tidemill: whether a batch has texts of similar lengths."""
    checkpointing: bool = False
    """Of TRL: its default, which computes activations twice and keeps fewer."""


LORA_FP32, FULL_FP32 = "LoRA", "full"
CASES: dict[str, Case] = {
    LORA_FP32: Case("tidemill", "lora"),
    "TRL, LoRA": Case("trl", "lora"),
    "TRL, LoRA, gradient checkpointing": Case("trl", "lora", checkpointing=True),
    FULL_FP32: Case("tidemill", "full"),
    "TRL, full": Case("trl", "full"),
    "prompt tuning": Case("tidemill", "prompt_tuning"),
    "LoRA, bf16": Case("tidemill", "lora", precision="bf16"),
    "LoRA, mixed lengths": Case("tidemill", "lora", pairs="mixed"),
    "LoRA, mixed lengths, shuffled": Case("tidemill", "lora", pairs="mixed", grouped=False),
}
OPTIONS: dict[str, dict[str, Any]] = {"lora": {"r": 8, "alpha": 16.0}, "full": {}, "prompt_tuning": {}}
RATES = {"lora": 1e-3, "full": 2e-4, "prompt_tuning": 1e-2}
WARMUP = 0.1
TASK = GenerationTask("Write a headline for this news article.\n\n{text}", "headline", 128, 24)
MIXED = replace(TASK, max_input_tokens=480)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a process gets."""

    case: str
    base: str
    """Folder of the base model."""
    tokenizer: str
    """Folder of its tokenizer, with the tokens that the method adds."""
    pairs: str
    """JSON file of `save_pairs`."""
    steps: int
    batch: int
    seed: int
    threads: int

    def write(self, file: Path) -> None:
        """To be read by `read`."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Setting:
        """What `write` wrote."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class Measured:
    """What a training took and brought."""

    tokens: int
    """That the model read, padding left out."""
    seconds: float
    processor_seconds: float
    peak_bytes: int
    """Greatest resident size since the libraries were loaded, less the size that they had."""
    loss: float
    """Nats per token of held-out answers after the training, in fp32."""


def save_pairs(file: Path, train: Sequence[Pair], holdout: Sequence[Pair]) -> None:
    """Writes token ids."""
    whole = {"train": train, "holdout": holdout}
    rows = {name: [[each.prompt, each.target] for each in pairs] for name, pairs in whole.items()}
    file.write_text(json.dumps(rows), encoding="utf-8")


def read_pairs(file: Path) -> tuple[list[Pair], list[Pair]]:
    """Those to train on, and those held out."""
    rows = json.loads(file.read_text(encoding="utf-8"))
    return [Pair(*each) for each in rows["train"]], [Pair(*each) for each in rows["holdout"]]
