"""A run that trains an encoder to classify texts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from services.kit.errors import FailedPreconditionError
from services.training.adapters.job import Champion, Job
from services.training.domain.report import Example, Report
from services.training.domain.tasks import TextClassificationTask
from services.training.engine.metrics import compared, correct, mean_with_interval
from services.training.engine.tasks import ClassificationObjective, pad_right
from services.training.worker import encoders, phases
from services.training.worker.champion import Rows, champion_answers
from services.training.worker.phases import Phase, check_stop, kept

logger = logging.getLogger(__name__)
_BATCH = 32
_INPUT_SHOWN = 300


def run(job: Job, should_stop: Callable[[], bool]) -> Report:
    """Trains, evaluates and compresses; each result is stored in the run's folder."""
    import torch

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
    model = encoders.classifier_of(material.base_folder, len(labels), seed=spec.optimization.seed)
    phase.end()
    check_stop(should_stop)

    def objective() -> ClassificationObjective:
        return ClassificationObjective(
            tokens(train_rows), [index[r[task.label_field]] for r in train_rows], tokenizer.pad_token_id
        )

    figures = encoders.train(job, model, objective, device, tokenizer, should_stop, labels)

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
        own = champion.spec.task
        assert isinstance(own, TextClassificationTask)
        asked, words, names = encoders.load_champion(job, champion, path, device)
        return answers(asked, _tokens(words, own, rows), words.pad_token_id, names)

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
    variants = encoders.compress(
        job,
        model.to("cpu"),
        tokenizer,
        labels,
        tokens(train_rows),
        holdout_ids,
        lambda answers: [labels[i] for i in answers],
        lambda answers: mean_with_interval("accuracy", correct(references, answers)),
    )
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
