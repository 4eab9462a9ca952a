"""A run that trains an encoder to embed texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from services.kit.engine import EMBEDDING
from services.kit.errors import FailedPreconditionError
from services.kit.probes import vector_answer
from services.training.adapters import encoder_builds
from services.training.adapters.job import Job
from services.training.domain.tasks import Task, TextEmbeddingTask
from services.training.engine.embedding import (
    ContrastiveObjective,
    Related,
    Retrieved,
    build_embedder,
    packed,
    retrieved,
    unpacked,
)
from services.training.engine.metrics import Score, alone, mean_of, mean_with_interval
from services.training.worker.champion import Rows
from services.training.worker.encoders import EncoderRun, Tokens, encoder_of
from services.training.worker.parity import Parity, vector_parity
from services.training.worker.phases import Material

METRIC = "mrr_at_10"
"""Mean reciprocal rank of the positives among those of the hold-out, zero behind the tenth (TREC-8, Voorhees 1999)."""
_DEEP = 10
_SHOWN = 300

Vectors = dict[str, str]
"""Embeddings of a row's `text` and of its `positive`, each `packed`; and the `nearest` positive among the rows."""


class TextEmbeddingRun(EncoderRun[Vectors]):
    """An answer is the embeddings of a row, by which all rows are compared: each text is to find its positive."""

    ANSWERS_UNTRAINED = True
    MEASURE = mean_of(METRIC)

    def __init__(self, job: Job, material: Material, should_stop: Callable[[], bool]) -> None:
        task = job.spec.task
        assert isinstance(task, TextEmbeddingTask)
        self._task = task
        for part, rows in (("training", material.train), ("hold-out", material.holdout)):
            self._check(part, rows)
        # Feedback that was held back is compared among itself, however little of it there is.
        self._check_positives("held-back", material.corrections)
        if task.negative_field and not any(row[task.negative_field].strip() for row in material.train):
            raise _refused(
                "negative_field", f"column {task.negative_field!r} is empty in all training records; leave it out"
            )
        super().__init__(job, material, should_stop, ())

    def _check(self, part: str, rows: Rows) -> None:
        self._check_positives(part, rows)
        if len({row[self._task.positive_field] for row in rows}) < 2:
            wrong = (
                f"column {self._task.positive_field!r} has one text only in the {len(rows)} {part} records, and "
                "others are its negatives; two or more are needed"
            )
            raise _refused("positive_field", wrong)

    def _check_positives(self, part: str, rows: Rows) -> None:
        column = self._task.positive_field
        for row in rows:
            if not row[column].strip():
                wrong = (
                    f"column {column!r} of the {part} record {row['record_id']} is empty; name it in "
                    "dataset.required_attributes, so that records without it are left out"
                )
                raise _refused("positive_field", wrong)

    def make_model(self, folder: Path, seed: int, outputs: Sequence[str]) -> Any:
        """See `EncoderRun`."""
        return build_embedder(encoder_of(folder))

    def save_build(self, model: Any, path: Path) -> None:
        """See `EncoderRun`."""
        vocabulary = model.encoder.config.vocab_size
        encoder_builds.save_fp32(model, path, vocabulary=vocabulary, outputs=(EMBEDDING,))

    def base_answers(self, rows: Rows) -> list[Vectors]:
        """See `TaskRun`; the encoder as it was, pooled in the same way."""
        return self._ask(self._model.to(self.material.device).eval(), self.material.tokenizer, self._task, (), rows)

    def objective(self, tokens: Sequence[Tokens]) -> ContrastiveObjective:
        """See `EncoderRun`."""
        task, rows = self._task, self.material.train
        columns = (task.positive_field, task.negative_field)
        empty = Tokens([], [])
        positives, negatives = (
            self._column_tokens(rows, column) if column else [empty] * len(rows) for column in columns
        )
        examples = [
            Related(
                row["text"],
                row[task.positive_field],
                row.get(task.negative_field, "").strip(),
                *(each.ids for each in ids),
            )
            for row, *ids in zip(rows, tokens, positives, negatives, strict=True)
        ]
        pad = self.material.tokenizer.pad_token_id
        return ContrastiveObjective(examples, pad, temperature=task.temperature, dimensions=task.dimensions)

    def named(self, found: Sequence[Any], outputs: Sequence[str], tokens: Sequence[Tokens]) -> list[Vectors]:
        """See `EncoderRun`; the vectors of all texts and then of all positives, of as many rows as the half of them."""
        count = len(found) // 2
        return [{"text": text, "positive": each} for text, each in zip(found[:count], found[count:], strict=True)]

    def compared_as(self, answer: Vectors) -> str:
        """See `EncoderRun`."""
        return vector_answer(unpacked([answer["text"]])[0].tolist())

    def scored(self, rows: Rows, answers: Sequence[Vectors]) -> list[Score]:
        """See `TaskRun`; each text is to find its positive among those of all rows, also where a slice is measured."""
        return alone(_reciprocal(self._found(rows, answers)))

    def figures(self, tuned: Sequence[Vectors]) -> Mapping[str, float]:
        """How often the positive is the first that is found, and within ten; and what narrower embeddings reach."""
        rows = self.material.holdout
        ranks = [each.rank for each in self._found(rows, tuned)]
        first = mean_with_interval("recall_at_1", [float(rank == 1) for rank in ranks])
        narrow = {
            f"{METRIC}_dimensions_{width}": sum(scores) / len(scores)
            for width in self._task.dimensions
            for scores in [_reciprocal(self._found(rows, tuned, width))]
        }
        return {
            **first.figures(),
            "recall_at_10": sum(rank <= _DEEP for rank in ranks) / len(ranks),
            "holdout_positives": float(len({row[self._task.positive_field] for row in rows})),
            **narrow,
        }

    def ranked(self, tuned: Sequence[Vectors], base: Sequence[Vectors] | None) -> list[int]:
        """Those that are found last first."""
        found = self._found(self.material.holdout, tuned)
        return sorted(range(len(found)), key=lambda at: -found[at].rank)

    def reference(self, row: Mapping[str, str]) -> str:
        """See `TaskRun`."""
        return row[self._task.positive_field][:_SHOWN]

    def shown(self, row: Mapping[str, str], answer: Vectors) -> str:
        """See `TaskRun`; the positive that is nearest."""
        return answer["nearest"]

    def measured(self, folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
        """See `EncoderRun`."""
        tokenizer, rows = self.material.tokenizer, self.material.holdout
        tokens = self._both(tokenizer, self._task, rows)
        texts, probes = ([text.ids for text in each] for each in (tokens, self._probes()))

        def vector(outputs: Any) -> str:
            return packed(outputs[EMBEDDING][0])

        return {
            name: {
                "answers": self.named(item.answers, (), tokens),
                "probes": [self.compared_as({"text": each}) for each in item.probes],
                "latency_p50_ms": item.latency_p50_ms,
                "examples_per_second": item.examples_per_second,
            }
            for name, item in encoder_builds.measure(folders, texts, probes, vector).items()
        }

    def parity(self, tuned: Sequence[Vectors], builds: Mapping[str, Sequence[Vectors]]) -> Parity:
        """See `EncoderRun`; the cosine of a build's embeddings to the tuned model's, on average."""
        return vector_parity(_stacked(tuned), {name: _stacked(answers) for name, answers in builds.items()})

    @cached_property
    def _training_tokens(self) -> list[list[int]]:
        both = self._both(self.material.tokenizer, self._task, self.material.train)
        return [text.ids for text in both]

    def _ask(self, model: Any, tokenizer: Any, task: Task, outputs: Sequence[str], rows: Rows) -> list[Vectors]:
        answers = self.named(self._read(model, tokenizer, self._both(tokenizer, task, rows), _packed_rows), outputs, ())
        nearest = (rows[each.nearest][self._task.positive_field][:_SHOWN] for each in self._found(rows, answers))
        return [{**answer, "nearest": found} for answer, found in zip(answers, nearest, strict=True)]

    def _both(self, tokenizer: Any, task: Task, rows: Rows) -> list[Tokens]:
        """The tokens of all texts, and then those of their positives."""
        positives = [{"text": row[self._task.positive_field]} for row in rows]
        return self._tokens(tokenizer, task, [*rows, *positives])

    def _column_tokens(self, rows: Rows, column: str) -> list[Tokens]:
        return self._tokens(self.material.tokenizer, self._task, [{"text": row[column]} for row in rows])

    def _found(self, rows: Rows, answers: Sequence[Vectors], width: int = 0) -> list[Retrieved]:
        queries, candidates = (unpacked([answer[which] for answer in answers]) for which in ("text", "positive"))
        positives = [row[self._task.positive_field] for row in rows]
        return retrieved([row["text"] for row in rows], positives, queries, candidates, width)


def _packed_rows(vectors: Any) -> list[Any]:
    return [packed(vector) for vector in vectors.float().cpu().numpy()]


def _reciprocal(found: Sequence[Retrieved]) -> list[float]:
    return [1.0 / each.rank if each.rank <= _DEEP else 0.0 for each in found]


def _stacked(answers: Sequence[Vectors]) -> Any:
    """The embeddings of texts and positives, fp32 [2 * rows, width]."""
    return unpacked([answer[which] for which in ("text", "positive") for answer in answers])


def _refused(field: str, wrong: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"spec.text_embedding.{field}: {wrong}.", reason="POSITIVES_MISSING", metadata={"field": field}
    )


RUN = TextEmbeddingRun
