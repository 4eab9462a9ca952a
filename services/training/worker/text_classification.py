"""A run that trains an encoder to classify texts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from services.kit.engine import RUNTIME
from services.kit.errors import FailedPreconditionError
from services.training.adapters import encoder_builds
from services.training.adapters.base_models import BaseModels
from services.training.adapters.job import Champion, Job, write_json
from services.training.domain.report import Example, Report, Variant
from services.training.domain.tasks import TextClassificationTask
from services.training.engine.classifier import build_classifier, with_embedding
from services.training.engine.metrics import compared, correct, mean_with_interval
from services.training.engine.tasks import ClassificationObjective, pad_right
from services.training.worker import phases
from services.training.worker.champion import Rows, champion_answers
from services.training.worker.phases import Phase, check_stop, kept, kept_folder

logger = logging.getLogger(__name__)
_BATCH = 32
_INPUT_SHOWN = 300
_LABELS = "labels.json"


def run(job: Job, should_stop: Callable[[], bool]) -> Report:
    """Trains, evaluates and compresses; each result is stored in the run's folder."""
    import torch
    from safetensors.torch import load_model, save_model
    from transformers import AutoModel, AutoTokenizer

    spec, folder = job.spec, job.folder
    task = spec.task
    assert isinstance(task, TextClassificationTask)

    phase = Phase(job, "prepare")
    material = phases.material_of(job)
    device, tokenizer = material.device, material.tokenizer
    holdout, corrections = material.holdout, material.corrections
    train_rows = material.train
    labels = sorted({row[task.label_field] for row in train_rows})
    if len(labels) < 2:
        raise FailedPreconditionError(
            f"spec.text_classification.label_field: column {task.label_field!r} holds one label only, {labels[0]!r}, "
            "in the records to learn from; two or more are needed.",
            reason="LABELS_MISSING",
            metadata={"column": task.label_field},
        )
    index = {label: number for number, label in enumerate(labels)}

    def tokens(rows: Rows) -> list[list[int]]:
        return _tokens(tokenizer, task, rows)

    holdout_ids = tokens(holdout)
    references = [row[task.label_field] for row in holdout]
    encoder: Any = AutoModel.from_pretrained(
        str(material.base_folder), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    model: Any = build_classifier(encoder, encoder.config.hidden_size, len(labels), seed=spec.optimization.seed)
    phase.end()
    check_stop(should_stop)

    weights = folder / "merged" / "model.safetensors"
    if not weights.is_file():
        model.encoder = spec.method.adapt(model.encoder)
        model.head.requires_grad_(True)
        model.to(device)
        objective = ClassificationObjective(
            tokens(train_rows), [index[r[task.label_field]] for r in train_rows], tokenizer.pad_token_id
        )
        phases.train_adapted(job, model, model.encoder, objective, device, should_stop)
        model.encoder = spec.method.merge(model.encoder)

        def save(path: Path) -> None:
            save_model(model, str(path / "model.safetensors"))
            tokenizer.save_pretrained(str(path))
            # What its outputs mean, for when it is the champion of a later run.
            write_json(path / _LABELS, labels)

        kept_folder(folder / "merged", save)
    else:
        load_model(model, str(weights))
    phases.drop_checkpoints(job)
    figures = kept(folder / "eval" / "train.json", dict)
    model.to(device).eval()

    def answers(asked: Any, ids: list[list[int]], pad: int, names: Sequence[str]) -> list[str]:
        phase = Phase(job, "evaluate", len(ids), "texts")
        found: list[str] = []
        with torch.inference_mode():
            for start in range(0, len(ids), _BATCH):
                batch, mask = pad_right(ids[start : start + _BATCH], pad)
                found += [names[i] for i in asked(batch.to(device), mask.to(device)).argmax(-1).tolist()]
                phase.advance(len(found))
                check_stop(should_stop)
        phase.end()
        return found

    def by_champion(champion: Champion, path: Path, rows: Rows) -> list[str]:
        own, names = champion.spec.task, json.loads((path / _LABELS).read_text())
        assert isinstance(own, TextClassificationTask)
        base = BaseModels(job.models_dir, job.downloads_dir).prepare(champion.spec.base_model)
        words: Any = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
        bare: Any = AutoModel.from_pretrained(
            str(base), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        asked: Any = build_classifier(bare, bare.config.hidden_size, len(names), seed=0)
        load_model(asked, str(path / "model.safetensors"))
        return answers(asked.to(device).eval(), _tokens(words, own, rows), words.pad_token_id, names)

    tuned_answers = kept(
        folder / "eval" / "tuned.json", lambda: answers(model, holdout_ids, tokenizer.pad_token_id, labels)
    )
    tuned_corrected = kept(
        folder / "eval" / "tuned_corrections.json",
        lambda: answers(model, tokens(corrections), tokenizer.pad_token_id, labels) if corrections else [],
    )
    check_stop(should_stop)
    champion = champion_answers(job, holdout, corrections, by_champion)
    wanted = [row[task.label_field] for row in corrections]
    variants = _compress(job, task, model.to("cpu"), tokenizer, labels, tokens(train_rows), holdout_ids, references)
    wrong_first = sorted(range(len(holdout)), key=lambda i: references[i] == tuned_answers[i])
    shown = phases.shown_examples(wrong_first)
    found = compared(
        "accuracy",
        correct(references, tuned_answers),
        None,
        None if champion.holdout is None else correct(references, champion.holdout),
    )
    return Report(
        tuned=found.tuned,
        examples=tuple(
            Example(holdout[i]["record_id"], holdout[i]["text"][:_INPUT_SHOWN], references[i], "", tuned_answers[i])
            for i in shown
        ),
        variants=variants,
        figures={
            **figures,
            # The accuracy of always answering with the commonest label.
            "majority_accuracy": max(references.count(label) for label in labels) / len(references),
        },
        warnings=(*phases.precision_warnings(job, device), *champion.warnings),
        champion=found.champion,
        over_champion=found.over_champion,
        champion_run=champion.run,
        corrections=compared(
            "accuracy",
            correct(wanted, tuned_corrected),
            None,
            None if champion.corrections is None else correct(wanted, champion.corrections),
        )
        if corrections
        else None,
    )


def _tokens(tokenizer: Any, task: TextClassificationTask, rows: Rows) -> list[list[int]]:
    encoded = tokenizer(
        # Text that looks like a special token, such as [SEP], is encoded as text, as serving does.
        [row["text"] for row in rows],
        truncation=True,
        max_length=task.max_input_tokens,
        split_special_tokens=True,
    )
    return [list(ids) for ids in encoded["input_ids"]]


def _compress(
    job: Job,
    task: TextClassificationTask,
    model: Any,
    tokenizer: Any,
    labels: list[str],
    calibration: list[list[int]],
    texts: list[list[int]],
    references: list[str],
) -> tuple[Variant, ...]:
    spec, folder = job.spec, job.folder
    phase = Phase(job, "compress", len(spec.variants), "builds")
    # int8 is derived from fp32, which is therefore always built.
    fp32 = kept_folder(folder / "variants" / "fp32", lambda path: _export(model, tokenizer, path))
    folders = {"fp32": fp32}
    if "int8" in spec.variants:

        def quantize(path: Path) -> None:
            encoder_builds.save_int8(fp32, path, calibration)
            tokenizer.save_pretrained(str(path))

        folders["int8"] = kept_folder(folder / "variants" / "int8", quantize)
    folders = {name: folders[name] for name in spec.variants}

    def measure() -> dict[str, Any]:
        return {
            name: {
                "answers": [labels[i] for i in item.answers],
                "latency_p50_ms": item.latency_p50_ms,
                "examples_per_second": item.examples_per_second,
            }
            for name, item in encoder_builds.measure(folders, texts).items()
        }

    measured = kept(folder / "eval" / "variants.json", measure)
    variants = []
    for name, path in folders.items():
        digest, size = phases.seal(
            job,
            path,
            {
                "task": "text_classification",
                "runtime": RUNTIME,
                "precision": name,
                "base_model": spec.base_model,
                "labels": labels,
                "max_input_tokens": task.max_input_tokens,
                "embedding_size": encoder_builds.embedding_size(path),
            },
        )
        item = measured[name]
        variants.append(
            Variant(
                name,
                path.as_uri(),
                digest,
                size,
                mean_with_interval("accuracy", correct(references, item["answers"])),
                examples_per_second=item["examples_per_second"],
                latency_p50_ms=item["latency_p50_ms"],
            )
        )
    phase.end()
    return tuple(variants)


def _export(model: Any, tokenizer: Any, path: Path) -> None:
    encoder_builds.save_fp32(with_embedding(model), path, vocabulary=model.encoder.config.vocab_size)
    tokenizer.save_pretrained(str(path))
