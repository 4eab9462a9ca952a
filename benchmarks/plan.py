"""The memory plan beside what a training takes: `make bench-plan`, into docs/benchmarks.md.

Each case trains two steps in a process of its own, with the allocator of a run's worker. The peak is the greatest
resident size since the libraries were loaded, less the size that they had.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import described, resident_bytes
from benchmarks.report import table, write_section
from services.training.domain.machine import Machine
from services.training.domain.tasks import GenerationTask, TextClassificationTask
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.engine.allocation import ALLOCATOR, Allocation
from services.training.engine.methods import make_method
from services.training.engine.run_plan import plan_run

_DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_LLAMA: dict[str, Any] = {
    "vocab_size": 16384, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}  # fmt: skip
_BERT: dict[str, Any] = {
    "vocab_size": 21128, "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "intermediate_size": 2048, "max_position_embeddings": 512, "type_vocab_size": 2,
    "attention_probs_dropout_prob": 0.1,
}  # fmt: skip
_WRITER, _LONG = GenerationTask("{text}", "answer", 128, 24), GenerationTask("{text}", "answer", 512, 128)
_LABELS = TextClassificationTask("label", 128)
# Method, its options, task, batch.
CASES: dict[str, tuple[str, dict[str, object], Any, int]] = {
    "decoder, full, 8 x 152": ("full", {}, _WRITER, 8),
    "decoder, LoRA r 8, 8 x 152": ("lora", {}, _WRITER, 8),
    "decoder, LoRA r 8, 2 x 640": ("lora", {}, _LONG, 2),
    "decoder, DPO, 4 x 152": ("dpo", {"rejected_field": "other"}, _WRITER, 4),
    "decoder, prompt tuning, 8 x 152": ("prompt_tuning", {"virtual_tokens": 20}, _WRITER, 8),
    "encoder, full, 32 x 128": ("full", {}, _LABELS, 32),
    "encoder, LoRA r 8, 32 x 128": ("lora", {}, _LABELS, 32),
}


def spec_of(case: str) -> TrainingSpec:
    """The run of a case."""
    method, options, task, batch = CASES[case]
    return TrainingSpec(
        "bench", "bench", "d", "", "0" * 64, task, make_method(method, options),
        Optimization(max_steps=2, batch_size=batch, learning_rate=1e-4),
    )  # fmt: skip


def measure(case: str) -> dict[str, float]:
    """Trains here, with weights made from the configuration."""
    import peft  # noqa: F401 - its libraries are not the training's
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    from services.training.engine.attention import SHORT, plain_attention
    from services.training.engine.classifier import build_classifier
    from services.training.engine.loop import train
    from services.training.engine.preferences import PreferenceObjective, Preferred
    from services.training.engine.tasks import ClassificationObjective, CompletionObjective, Objective, Pair

    spec, cpu = spec_of(case), torch.device("cpu")
    task, batch = spec.task, spec.optimization.batch_size
    # What the first step loads is not the plan's either.
    little: Any = torch.nn.Linear(64, 64)
    torch.optim.AdamW(little.parameters(), foreach=True)
    little(torch.ones(8, 64)).sum().backward()
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    objective: Objective
    if isinstance(task, GenerationTask):
        whole = LlamaForCausalLM(LlamaConfig(**_LLAMA))
        model: Any = spec.method.adapt(whole)
        prompt = [1 + at % 500 for at in range(task.max_input_tokens)]
        answer = [1 + at % 300 for at in range(task.max_target_tokens)]
        objective = CompletionObjective([Pair(prompt, answer)] * batch, 0)
        if spec.method.kind == "dpo":
            preferred = [Preferred(prompt, answer, answer[::-1])] * batch
            objective = PreferenceObjective(preferred, 0, beta=0.1, label_smoothing=0.0)
        length = len(prompt) + len(answer) - 1
    else:
        encoder = spec.method.adapt(BertModel(BertConfig(**_BERT)))
        model = build_classifier(encoder, _BERT["hidden_size"], 2, seed=0)
        length = task.max_input_tokens
        objective = ClassificationObjective([[1 + at % 500 for at in range(length)]] * batch, [0] * batch, 0)
    if length <= SHORT:
        plain_attention(model)
    # As where memory is scarce: with room, a run takes more for speed.
    train(model, objective, spec.optimization, device=cpu, allocation=Allocation(room=math.inf))
    return {"peak": resident_bytes("VmHWM") - before, "libraries": before}


def run_case(case: str, environment: dict[str, str]) -> dict[str, float]:
    """A case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.plan", "--case", case]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=inherited | environment)
    if done.returncode:
        raise RuntimeError(f"{case} ended with {done.returncode}: {done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=sorted(CASES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case)))
        return
    head, rows, furthest, libraries = described(("torch", "transformers", "peft")), [], 0.0, []
    for case in CASES:
        config = _LLAMA if isinstance(spec_of(case).task, GenerationTask) else _BERT
        planned = plan_run(spec_of(case), config, Machine("cpu", 2**40)).chosen.memory.peak
        fixed, usual = run_case(case, dict(ALLOCATOR)), run_case(case, {})
        error = planned / fixed["peak"] - 1
        furthest = max(furthest, abs(error))
        libraries.append(fixed["libraries"])
        print(f"{case}: {fixed['peak'] / 1e6:.0f} MB, planned {planned / 1e6:.0f} MB, {error:+.1%}", flush=True)
        rows.append(
            [
                case,
                f"{planned / 1e6:,.0f} MB",
                f"{fixed['peak'] / 1e6:,.0f} MB",
                f"{error:+.1%}",
                f"{usual['peak'] / 1e6:,.0f} MB",
            ]
        )
    columns = ("model, method, batch", "planned", "measured", "plan's error", "measured with glibc's own threshold")
    last = (
        f"The largest error is {furthest:.1%}. The libraries of the process take {min(libraries) / 1e6:,.0f} to "
        f"{max(libraries) / 1e6:,.0f} MB beside that; a plan on a processor adds 900 MB for them."
    )
    write_section(_DOCUMENT, "plan", [*head, "", *table(columns, rows), "", last])


if __name__ == "__main__":
    main()
