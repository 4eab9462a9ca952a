"""A run that trains an encoder to find named parts of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.kit.errors import FailedPreconditionError
from services.kit.probes import spans_answer
from services.kit.spans import Span, spans_of, tags_for, tags_of
from services.training.adapters.job import Job
from services.training.domain.tasks import TokenClassificationTask
from services.training.engine.annotations import Lexicon, spans_of_row
from services.training.engine.metrics import Score, SpanCounts, f1_of, span_counts, span_metrics
from services.training.engine.tasks import NO_TAG, TokenObjective
from services.training.worker.champion import Rows
from services.training.worker.encoders import EncoderRun, Tokens
from services.training.worker.phases import Material

Found = list[tuple[int, int, str]]
"""The spans of a text: start, end and label of each."""


class TokenClassificationRun(EncoderRun[Found]):
    """An answer is the spans of a text."""

    EACH_TOKEN = True
    MEASURE = f1_of("entity_f1")

    def __init__(self, job: Job, material: Material, should_stop: Callable[[], bool]) -> None:
        task = job.spec.task
        assert isinstance(task, TokenClassificationTask)
        self._column = column = task.spans_field
        self._train = self._spans(material.train)
        # Read now, so that a broken record ends the run before it trains.
        self._holdout = self._spans(material.holdout)
        self._spans(material.corrections)
        labels = sorted({span.label for spans in self._train for span in spans})
        if not labels:
            wrong = f"column {column!r} has no span in the {len(self._train)} training records"
            raise FailedPreconditionError(
                f"spec.token_classification.spans_field: {wrong}.",
                reason="LABELS_MISSING",
                metadata={"column": column},
            )
        super().__init__(job, material, should_stop, tags_for(labels))

    def objective(self, tokens: Sequence[Tokens]) -> TokenObjective:
        """See `EncoderRun`."""
        index = {tag: number for number, tag in enumerate(self.outputs)}
        wanted = [
            [NO_TAG if tag is None else index[tag] for tag in tags_of(spans, text.offsets)]
            for spans, text in zip(self._train, tokens, strict=True)
        ]
        return TokenObjective([text.ids for text in tokens], wanted, self.material.tokenizer.pad_token_id)

    def named(self, found: Sequence[Any], outputs: Sequence[str], tokens: Sequence[Tokens]) -> list[Found]:
        """See `EncoderRun`."""
        spans = (
            # A batch is padded to its longest text.
            spans_of([outputs[number] for number in answer[: len(text.ids)]], text.offsets, [1.0] * len(text.ids))
            for answer, text in zip(found, tokens, strict=True)
        )
        return [[(span.start, span.end, span.label) for span in each] for each in spans]

    def compared_as(self, answer: Found) -> str:
        """See `EncoderRun`."""
        return spans_answer(answer)

    def scored(self, rows: Rows, answers: Sequence[Found]) -> list[Score]:
        """See `TaskRun`."""
        return [*_counts(self._spans(rows), answers)]

    def figures(self, tuned: Sequence[Found]) -> Mapping[str, float]:
        """Precision and recall, and what remembering every span of the training texts would reach."""
        own = span_metrics(_counts(self._holdout, tuned))
        lexicon = Lexicon((row["text"], spans) for row, spans in zip(self.material.train, self._train, strict=True))
        remembered = [lexicon.find(row["text"]) for row in self.material.holdout]
        reached = span_metrics([span_counts(*pair) for pair in zip(self._holdout, remembered, strict=True)])
        return {
            **{name: own[name].value for name in ("entity_precision", "entity_recall")},
            "lexicon_entity_f1": reached["entity_f1"].value,
            "holdout_entities": float(sum(map(len, self._holdout))),
        }

    def ranked(self, tuned: Sequence[Found], base: Sequence[Found] | None) -> list[int]:
        """Those with the most mistakes first."""
        counts = _counts(self._holdout, tuned)
        return sorted(range(len(counts)), key=lambda at: counts[at].right - counts[at].found - counts[at].wanted)

    def reference(self, row: Mapping[str, str]) -> str:
        """See `TaskRun`."""
        return self.shown(row, [(span.start, span.end, span.label) for span in spans_of_row(row, self._column)])

    def shown(self, row: Mapping[str, str], answer: Found) -> str:
        """See `TaskRun`."""
        return ", ".join(f"{row['text'][start:end]} ({label})" for start, end, label in answer)

    def _spans(self, rows: Rows) -> list[list[Span]]:
        return [spans_of_row(row, self._column) for row in rows]


def _counts(wanted: Sequence[Sequence[Span]], found: Sequence[Found]) -> list[SpanCounts]:
    return [
        span_counts(spans, [Span(start, end, label) for start, end, label in answer])
        for spans, answer in zip(wanted, found, strict=True)
    ]


RUN = TokenClassificationRun
