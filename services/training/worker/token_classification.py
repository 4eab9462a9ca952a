"""A run that trains an encoder to find named parts of texts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.kit.errors import FailedPreconditionError
from services.kit.spans import Span, spans_of, tags_for, tags_of
from services.training.adapters.job import Champion, Job
from services.training.domain.report import Example, Report
from services.training.domain.tasks import TokenClassificationTask
from services.training.engine.annotations import Lexicon, spans_of_row
from services.training.engine.metrics import SpanCounts, span_counts, span_metrics, spans_compared
from services.training.engine.tasks import NO_TAG, TokenObjective, pad_right
from services.training.worker import encoders, phases
from services.training.worker.champion import Rows, champion_answers
from services.training.worker.phases import Phase, check_stop, kept

logger = logging.getLogger(__name__)
_BATCH = 32
_INPUT_SHOWN = 300


@dataclass(frozen=True, slots=True)
class _Tokens:
    """A text's tokens, and the characters of each."""

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Text(_Tokens):
    """A record, and its spans, those beyond the longest text included."""

    row: dict[str, str]
    spans: list[Span]


def run(job: Job, should_stop: Callable[[], bool]) -> Report:
    """Trains, evaluates and compresses; each result is kept in the run's folder."""
    import torch

    spec, folder, task = job.spec, job.folder, job.spec.task
    assert isinstance(task, TokenClassificationTask)

    phase = Phase(job, "prepare")
    material = phases.material_of(job)
    device, tokenizer = material.device, material.tokenizer
    train, holdout, corrections = (
        _texts(tokenizer, task, rows) for rows in (material.train, material.holdout, material.corrections)
    )
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

    figures = encoders.train(job, model, objective, device, tokenizer, should_stop, tags)

    def answers(asked: Any, texts: Sequence[_Tokens], pad: int) -> list[list[int]]:
        phase = Phase(job, "evaluate", len(texts), "texts")
        found: list[list[int]] = []
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                part = texts[start : start + _BATCH]
                ids, mask = pad_right([text.ids for text in part], pad)
                best = asked(ids.to(device), mask.to(device)).argmax(-1).tolist()
                found += [row[: len(text.ids)] for row, text in zip(best, part, strict=True)]
                phase.advance(len(found))
                check_stop(should_stop)
        phase.end()
        return found

    def tuned_answers(name: str, texts: Sequence[_Text]) -> list[list[Span]]:
        numbers = kept(folder / "eval" / name, lambda: answers(model, texts, tokenizer.pad_token_id) if texts else [])
        return _named(numbers, tags, texts)

    def by_champion(champion: Champion, path: Path, rows: Rows) -> list[list[tuple[int, int, str]]]:
        own = champion.spec.task
        assert isinstance(own, TokenClassificationTask)
        asked, words, names = encoders.load_champion(job, champion, path, device, each_token=True)
        texts = _tokens(words, own, rows)
        found = _named(answers(asked, texts, words.pad_token_id), names, texts)
        return [[(span.start, span.end, span.label) for span in spans] for spans in found]

    found = tuned_answers("tuned.json", holdout)
    corrected = tuned_answers("tuned_corrections.json", corrections)
    check_stop(should_stop)
    champion = champion_answers(job, material.holdout, material.corrections, by_champion)
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
    compared = spans_compared(counts, _counts_of(holdout, champion.holdout))
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
        warnings=(*phases.precision_warnings(job, device), *champion.warnings),
        champion=compared.champion,
        over_champion=compared.over_champion,
        champion_run=champion.run,
        corrections=spans_compared(_counts(corrections, corrected), _counts_of(corrections, champion.corrections))
        if corrections
        else None,
    )


def _texts(tokenizer: Any, task: TokenClassificationTask, rows: Rows) -> list[_Text]:
    return [
        _Text(tokens.ids, tokens.offsets, row, spans_of_row(row, task.spans_field))
        for row, tokens in zip(rows, _tokens(tokenizer, task, rows), strict=True)
    ]


def _tokens(tokenizer: Any, task: TokenClassificationTask, rows: Rows) -> list[_Tokens]:
    if not rows:
        return []
    encoded = tokenizer(
        [row["text"] for row in rows],
        truncation=True,
        max_length=task.max_input_tokens,
        # Anything that looks like a special token, such as [SEP], is plain text; serving does the same.
        split_special_tokens=True,
        return_offsets_mapping=True,
    )
    return [
        _Tokens(list(ids), [(start, end) for start, end in offsets])
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _named(answers: Sequence[Sequence[int]], tags: Sequence[str], texts: Sequence[_Tokens]) -> list[list[Span]]:
    """The spans behind the numbers of tags."""
    return [
        spans_of([tags[number] for number in answer], text.offsets, [1.0] * len(answer))
        for answer, text in zip(answers, texts, strict=True)
    ]


def _counts(texts: Sequence[_Text], found: Sequence[Sequence[Span]]) -> list[SpanCounts]:
    return [span_counts(text.spans, each) for text, each in zip(texts, found, strict=True)]


def _counts_of(texts: Sequence[_Text], answers: list[list[tuple[int, int, str]]] | None) -> list[SpanCounts] | None:
    """Counts of the champion's answers, which were kept as start, end and label; None without a champion."""
    if answers is None:
        return None
    return _counts(texts, [[Span(start, end, label) for start, end, label in spans] for spans in answers])


def _shown(text: _Text, spans: Sequence[Span]) -> str:
    return ", ".join(f"{text.row['text'][span.start : span.end]} ({span.label})" for span in spans)
