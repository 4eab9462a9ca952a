"""`make bench-training`: fine-tuning SmolLM2-135M on news headlines, beside TRL's SFTTrainer with PEFT.

Each training runs in a process of its own, all cases in turn, until the rounds or the minutes are over. Beside speed
and memory stands the loss of held-out headlines after the training. Writes its part of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, peers
from benchmarks.report import table, write_section
from benchmarks.training.cases import BASE, CASES, MIXED, OPTIONS, TASK, Case, Measured, Setting, save_pairs
from services.kit.config import home_dir
from services.training.adapters.base_models import BaseModels
from services.training.domain.tasks import GenerationTask
from services.training.engine.allocation import ALLOCATOR
from services.training.engine.method_capabilities import AddsTokens
from services.training.engine.methods import make_method
from services.training.engine.prompts import prompts_of, training_pairs

_TRL = ("trl==1.16.0", "datasets==5.2.0", "dill==0.4.1", "multiprocess==0.70.19")
_HOLDOUT, _TRAIN = 48, 640
_PAIRS = (
    ("Tidemill beside TRL, LoRA", "LoRA", "TRL, LoRA"),
    ("Tidemill beside TRL's defaults, LoRA", "LoRA", "TRL, LoRA, gradient checkpointing"),
    ("Tidemill beside TRL, full", "full", "TRL, full"),
    ("LoRA beside full", "LoRA", "full"),
    ("prompt tuning beside full", "prompt tuning", "full"),
    ("LoRA in bf16 beside fp32", "LoRA, bf16", "LoRA"),
    ("mixed lengths, grouped beside shuffled", "LoRA, mixed lengths", "LoRA, mixed lengths, shuffled"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--articles", type=Path, default=home_dir() / "data" / "bbc")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=30, help="no round begins later")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks.md"))
    options = parser.parse_args()
    lines = machine.described(("torch", "transformers", "peft"))
    trl = peers.installed("trl", _TRL, alone=True)
    base = BaseModels(home_dir() / "models", home_dir() / "downloads").prepare(BASE)
    found: dict[str, list[Measured]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as scratch:
        settings = _settings(options, base, Path(scratch))
        began = time.monotonic()
        for number in range(options.rounds):
            if time.monotonic() - began > options.minutes * 60:
                break
            for name, setting in settings(number).items():
                measured = _in_process(setting, Path(scratch), trl)
                found[name].append(measured)
                print(f"round {number + 1}, {name}: {measured}", flush=True)
    rounds = len(found[options.cases[0]])
    lines += [
        f"- beside {_TRL[0]} with PEFT on the same versions of torch and transformers; {rounds} rounds of all cases in "
        "turn, each training in a process of its own; medians, and of ratios the least and the greatest, too",
        f"- {BASE}, {options.steps} steps of {options.batch} articles of at most {TASK.max_input_tokens} tokens and "
        f"their headlines (mixed lengths: up to {MIXED.max_input_tokens} tokens), {options.threads} threads, fp32 "
        "unless said; tokens without padding",
        "- memory: the process's greatest size since its libraries were loaded, above the size that they had; "
        "Tidemill's with the allocator's settings of a run's worker",
        f"- loss: nats per token of {_HOLDOUT} held-out headlines after the training, by one function for all",
        "",
        *_cases(found),
        "",
        *_ratios(found),
    ]
    write_section(options.report, "training", lines)


def _settings(options: Any, base: Path, scratch: Path) -> Callable[[int], dict[str, Setting]]:
    """Writes tokenizers and pairs; returns the settings of a round, whose number is its seed."""
    places: dict[tuple[str, str], tuple[Path, Path]] = {}

    def places_of(case: Case) -> tuple[Path, Path]:
        method = make_method(case.method, OPTIONS[case.method])
        key = (case.pairs, case.method if isinstance(method, AddsTokens) else "")
        if key not in places:
            tokenizer, pairs = base, scratch / f"{'-'.join(key)}.json"
            if isinstance(method, AddsTokens):
                tokenizer = scratch / case.method
                tokenizer.mkdir()
                method.write_tokenizer(base, tokenizer)
            _write_pairs(options.articles, tokenizer, case.pairs, pairs)
            places[key] = tokenizer, pairs
        return places[key]

    chosen = {name: places_of(CASES[name]) for name in options.cases}

    def of_round(number: int) -> dict[str, Setting]:
        return {
            name: Setting(
                name, str(base), str(tokenizer), str(pairs), options.steps, options.batch, number, options.threads
            )
            for name, (tokenizer, pairs) in chosen.items()
        }

    return of_round


def _write_pairs(articles: Path, tokenizer_folder: Path, kind: str, file: Path) -> None:
    """Prompts of articles and their headlines, of which the last are held out."""
    from transformers import AutoTokenizer

    load: Any = AutoTokenizer
    tokenizer = load.from_pretrained(str(tokenizer_folder), trust_remote_code=False)
    task = TASK if kind == "headlines" else MIXED
    rows = _rows(articles, task)
    chance = np.random.default_rng(7)
    if kind == "mixed":
        # Lengths of one to four hundred words, as many short as long ones on a logarithmic scale.
        words = np.exp(chance.uniform(np.log(8), np.log(400), len(rows))).astype(int)
        rows = [{**row, "text": " ".join(row["text"].split()[:most])} for row, most in zip(rows, words, strict=True)]
    pairs = training_pairs(prompts_of(tokenizer_folder, task), tokenizer, task, rows)
    save_pairs(file, pairs[:_TRAIN], pairs[_TRAIN:])


def _rows(articles: Path, task: GenerationTask) -> list[dict[str, str]]:
    """Articles by their text and headline, shuffled; one that comes twice counts once."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(articles.glob("*/*.txt")):
        headline, _, text = path.read_text(encoding="utf-8", errors="replace").partition("\n")
        found.setdefault(text.strip(), {"text": text.strip(), task.target_field: headline.strip()})
    if len(found) < _TRAIN + _HOLDOUT:
        raise SystemExit(f"{articles} has {len(found)} articles; `make run` fetches them.")
    rows = list(found.values())
    return [rows[at] for at in np.random.default_rng(13).permutation(len(rows))[: _TRAIN + _HOLDOUT]]


def _in_process(setting: Setting, scratch: Path, trl: Path) -> Measured:
    file = scratch / "setting.json"
    setting.write(file)
    command = [sys.executable, "-m", "benchmarks.training.worker", str(file), str(trl)]
    # Each side as its users start it. Only that threads which wait do not spin is common: on a busy machine it takes
    # either side ten times as long.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    if CASES[setting.case].side == "tidemill":
        environment |= ALLOCATOR
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{setting.case} ended with {done.returncode}: {done.stderr[-3000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _cases(found: dict[str, list[Measured]]) -> list[str]:
    rows = []
    for name, rounds in found.items():
        losses = [each.loss for each in rounds]
        rows.append(
            [
                name,
                f"{statistics.median(each.tokens / each.seconds for each in rounds):,.0f}",
                f"{statistics.median(each.tokens / each.processor_seconds for each in rounds):,.0f}",
                f"{statistics.median(each.peak_bytes for each in rounds) / 1e6:,.0f}",
                f"{statistics.median(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})",
            ]
        )
    return table(("training", "tokens/s", "tokens per processor second", "peak MB", "held-out loss"), rows)


def _ratios(found: dict[str, list[Measured]]) -> list[str]:
    rows = []
    for title, one, other in _PAIRS:
        if one in found and other in found:
            both = list(zip(found[one], found[other], strict=True))
            rows.append(
                [
                    title,
                    _ratio([a.tokens / a.seconds / (b.tokens / b.seconds) for a, b in both]),
                    _ratio([a.tokens / a.processor_seconds / (b.tokens / b.processor_seconds) for a, b in both]),
                    _ratio([a.peak_bytes / b.peak_bytes for a, b in both]),
                    f"{statistics.median(a.loss - b.loss for a, b in both):+.3f}",
                ]
            )
    return table(("ratio", "tokens/s", "tokens per processor second", "peak memory", "held-out loss, difference"), rows)


def _ratio(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
