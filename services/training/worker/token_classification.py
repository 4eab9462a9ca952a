"""A run that trains an encoder to find named parts of texts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.kit.errors import FailedPreconditionError
from services.kit.spans import Span, spans_of, tags_for, tags_of
from services.training.adapters.job import Job
from services.training.domain.report import Example, Report
from services.training.domain.tasks import TokenClassificationTask
from services.training.engine.annotations import Lexicon, spans_of_row
from services.training.engine.metrics import SpanCounts, span_counts, span_metrics
from services.training.engine.tasks import NO_TAG, TokenObjective, pad_right
from services.training.worker import encoders, phases
from services.training.worker.phases import Phase, check_stop, kept

logger = logging.getLogger(__name__)
_BATCH = 32
_INPUT_SHOWN = 300


@dataclass(frozen=True, slots=True)
class _Text:
    """A record: its tokens, the characters of each, and its spans, those beyond the longest text included."""

    row: dict[str, str]
    ids: list[int]
    offsets: list[tuple[int, int]]
    spans: list[Span]


def run(job: Job, should_stop: Callable[[], bool]) -> Report:
    """Trains, evaluates and compresses; each result is kept in the run's folder."""
    import torch

    spec, folder, task = job.spec, job.folder, job.spec.task
    assert isinstance(task, TokenClassificationTask)

    phase = Phase(job, "prepare")
    material = phases.material_of(job)
    device, tokenizer = material.device, material.tokenizer
    train, holdout = (_texts(tokenizer, task, rows) for rows in (material.train, material.holdout))
    labels = sorted({span.label for text in train for span in text.spans})
    if not labels:
        column = task.spans_field
        wrong = f"column {column!r} has no span in the {len(train)} training records"
        raise FailedPreconditionError(
            f"spec.token_classification.spans_field: {wrong}.",
            reason="LABELS_MISSING",
            metadata={"column": column},
        )
    tags = tags_for(labels)
    model = encoders.classifier_of(material.base_folder, len(tags), seed=spec.optimization.seed, each_token=True)
    phase.end()
    check_stop(should_stop)

    def objective() -> TokenObjective:
        index = {tag: number for number, tag in enumerate(tags)}
        wanted = [[NO_TAG if tag is None else index[tag] for tag in tags_of(t.spans, t.offsets)] for t in train]
        return TokenObjective([text.ids for text in train], wanted, tokenizer.pad_token_id)

    figures = encoders.train(job, model, objective, device, tokenizer, should_stop)

    def answers() -> list[list[int]]:
        phase = Phase(job, "evaluate", len(holdout), "texts")
        found: list[list[int]] = []
        with torch.inference_mode():
            for start in range(0, len(holdout), _BATCH):
                part = holdout[start : start + _BATCH]
                ids, mask = pad_right([text.ids for text in part], tokenizer.pad_token_id)
                best = model(ids.to(device), mask.to(device)).argmax(-1).tolist()
                found += [row[: len(text.ids)] for row, text in zip(best, part, strict=True)]
                phase.advance(len(found))
                check_stop(should_stop)
        phase.end()
        return found

    found = _named(kept(folder / "eval" / "tuned.json", answers), tags, holdout)
    check_stop(should_stop)
    variants = encoders.compress(
        job,
        model.to("cpu"),
        tokenizer,
        tags,
        [text.ids for text in train],
        [text.ids for text in holdout],
        list,
        lambda answers: span_metrics(_counts(holdout, _named(answers, tags, holdout)))["entity_f1"],
    )
    counts = _counts(holdout, found)
    tuned = span_metrics(counts)
    lexicon = Lexicon((text.row["text"], text.spans) for text in train)
    remembered = span_metrics(_counts(holdout, [lexicon.find(text.row["text"]) for text in holdout]))
    wrong_first = sorted(range(len(holdout)), key=lambda i: counts[i].right - counts[i].found - counts[i].wanted)
    return Report(
        tuned=tuned["entity_f1"],
        examples=tuple(
            Example(
                holdout[i].row["record_id"],
                holdout[i].row["text"][:_INPUT_SHOWN],
                _shown(holdout[i], holdout[i].spans),
                "",
                _shown(holdout[i], found[i]),
            )
            for i in phases.shown_examples(wrong_first)
        ),
        variants=variants,
        figures={
            **figures,
            **{name: tuned[name].value for name in ("entity_precision", "entity_recall")},
            # What remembering every span of the training texts would reach.
            "lexicon_entity_f1": remembered["entity_f1"].value,
            "holdout_entities": float(sum(len(text.spans) for text in holdout)),
        },
        warnings=phases.precision_warnings(job, device),
    )


def _texts(tokenizer: Any, task: TokenClassificationTask, rows: Sequence[dict[str, str]]) -> list[_Text]:
    encoded = tokenizer(
        [row["text"] for row in rows],
        truncation=True,
        max_length=task.max_input_tokens,
        # Anything that looks like a special token, such as [SEP], is plain text; serving does the same.
        split_special_tokens=True,
        return_offsets_mapping=True,
    )
    return [
        _Text(row, list(ids), [(start, end) for start, end in offsets], spans_of_row(row, task.spans_field))
        for row, ids, offsets in zip(rows, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _named(answers: Sequence[Sequence[int]], tags: Sequence[str], texts: Sequence[_Text]) -> list[list[Span]]:
    """The spans behind the numbers of tags."""
    return [
        spans_of([tags[number] for number in answer], text.offsets, [1.0] * len(answer))
        for answer, text in zip(answers, texts, strict=True)
    ]


def _counts(texts: Sequence[_Text], found: Sequence[Sequence[Span]]) -> list[SpanCounts]:
    return [span_counts(text.spans, each) for text, each in zip(texts, found, strict=True)]


def _shown(text: _Text, spans: Sequence[Span]) -> str:
    return ", ".join(f"{text.row['text'][span.start : span.end]} ({span.label})" for span in spans)
