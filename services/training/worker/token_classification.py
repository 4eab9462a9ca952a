"""A run that trains an encoder to find named parts of texts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.kit.engine import RUNTIME
from services.kit.errors import FailedPreconditionError
from services.kit.spans import Span, spans_of, tags_for, tags_of
from services.training.adapters import encoder_builds
from services.training.adapters.job import Job
from services.training.domain.report import Example, Report, Variant
from services.training.domain.tasks import TokenClassificationTask
from services.training.engine.annotations import Lexicon, spans_of_row
from services.training.engine.classifier import build_classifier, with_embedding
from services.training.engine.metrics import SpanCounts, span_counts, span_metrics
from services.training.engine.tasks import NO_TAG, TokenObjective, pad_right
from services.training.worker import phases
from services.training.worker.phases import Phase, check_stop, kept, kept_folder

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
    from safetensors.torch import load_model, save_model
    from transformers import AutoModel

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
    encoder: Any = AutoModel.from_pretrained(
        str(material.base_folder), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    model: Any = build_classifier(
        encoder, encoder.config.hidden_size, len(tags), seed=spec.optimization.seed, each_token=True
    )
    phase.end()
    check_stop(should_stop)

    weights = folder / "merged" / "model.safetensors"
    if not weights.is_file():
        model.encoder = spec.method.adapt(model.encoder)
        model.head.requires_grad_(True)
        model.to(device)
        index = {tag: number for number, tag in enumerate(tags)}
        wanted = [[NO_TAG if tag is None else index[tag] for tag in tags_of(t.spans, t.offsets)] for t in train]
        objective = TokenObjective([text.ids for text in train], wanted, tokenizer.pad_token_id)
        phases.train_adapted(job, model, model.encoder, objective, device, should_stop)
        model.encoder = spec.method.merge(model.encoder)

        def save(path: Path) -> None:
            save_model(model, str(path / "model.safetensors"))
            tokenizer.save_pretrained(str(path))

        kept_folder(folder / "merged", save)
    else:
        load_model(model, str(weights))
    phases.drop_checkpoints(job)
    figures = kept(folder / "eval" / "train.json", dict)
    model.to(device).eval()

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
    variants = _compress(job, task, model.to("cpu"), tokenizer, tags, train, holdout)
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


def _compress(
    job: Job,
    task: TokenClassificationTask,
    model: Any,
    tokenizer: Any,
    tags: list[str],
    train: Sequence[_Text],
    holdout: Sequence[_Text],
) -> tuple[Variant, ...]:
    spec, folder = job.spec, job.folder
    phase = Phase(job, "compress", len(spec.variants), "builds")

    def export(path: Path) -> None:
        encoder_builds.save_fp32(with_embedding(model), path, vocabulary=model.encoder.config.vocab_size)
        tokenizer.save_pretrained(str(path))

    # int8 is made from fp32, which is therefore always built.
    fp32 = kept_folder(folder / "variants" / "fp32", export)
    folders = {"fp32": fp32}
    if "int8" in spec.variants:

        def quantize(path: Path) -> None:
            encoder_builds.save_int8(fp32, path, [text.ids for text in train])
            tokenizer.save_pretrained(str(path))

        folders["int8"] = kept_folder(folder / "variants" / "int8", quantize)
    folders = {name: folders[name] for name in spec.variants}

    def measure() -> dict[str, Any]:
        return {
            name: {
                "answers": item.answers,
                "latency_p50_ms": item.latency_p50_ms,
                "examples_per_second": item.examples_per_second,
            }
            for name, item in encoder_builds.measure(folders, [text.ids for text in holdout]).items()
        }

    measured = kept(folder / "eval" / "variants.json", measure)
    variants = []
    for name, path in folders.items():
        digest, size = phases.seal(
            job,
            path,
            {
                "task": "token_classification",
                "runtime": RUNTIME,
                "precision": name,
                "base_model": spec.base_model,
                "labels": tags,
                "max_input_tokens": task.max_input_tokens,
                "embedding_size": encoder_builds.embedding_size(path),
            },
        )
        item = measured[name]
        quality = span_metrics(_counts(holdout, _named(item["answers"], tags, holdout)))["entity_f1"]
        variants.append(
            Variant(
                name,
                path.as_uri(),
                digest,
                size,
                quality,
                examples_per_second=item["examples_per_second"],
                latency_p50_ms=item["latency_p50_ms"],
            )
        )
    phase.end()
    return tuple(variants)
