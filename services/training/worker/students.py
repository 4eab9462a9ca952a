"""Makes the students of an encoder's run: prunes a copy of the tuned model, and lets it learn from that."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.kit.errors import FailedPreconditionError
from services.training.adapters.checkpoints import CheckpointFolder
from services.training.adapters.job import Job
from services.training.domain.students import FIELD, Student
from services.training.engine.attention import SHORT, plain_attention
from services.training.engine.distillation import DistillationObjective
from services.training.engine.loop import StepProgress, train
from services.training.engine.students import groups_of, make_student
from services.training.worker.phases import Material, Phase

logger = logging.getLogger(__name__)
_FOLDER = "students"


def learnt_student(
    job: Job,
    material: Material,
    teacher: Any,
    wanted: Student,
    texts: Sequence[list[int]],
    should_stop: Callable[[], bool],
    *,
    independent: bool = False,
) -> Any:
    """A student that has learnt from its teacher, ready to be exported; resumed at the newest of its checkpoints.

    Args:
        job: the run.
        material: its tokenizer and device.
        teacher: the tuned classifier; it is moved to the device.
        wanted: what stays of it.
        texts: token ids of the training texts.
        should_stop: see `run_job`.
        independent: see `DistillationObjective`.

    Raises:
        Cancelled: `should_stop` returned true.
        FailedPreconditionError: tokens are to lose their embedding, and the tokenizer has none for unknown ones.
    """
    how, tokenizer, device = job.spec.distillation, material.tokenizer, material.device
    unknown: int | None = tokenizer.unk_token_id
    if wanted.vocabulary and unknown is None:
        raise FailedPreconditionError(
            f"{FIELD}: {wanted.name} cannot have a smaller vocabulary: the tokenizer of {job.spec.base_model} has no "
            "token for unknown ones. Leave vocabulary out.",
            reason="UNKNOWN_TOKEN_MISSING",
        )
    kept = [*((unknown,) if unknown is not None else ()), *tokenizer.all_special_ids]
    teacher.to(device).eval()
    student = make_student(teacher, wanted, texts, pad=tokenizer.pad_token_id, kept=kept)
    if device.type == "cpu" and max(map(len, texts)) <= SHORT:
        # A run that was killed has its teacher from a file, not from its training: both must compute the same.
        plain_attention(teacher)
        plain_attention(student)
    layers = len(teacher.encoder.encoder.layer)
    ends = [group[-1] for group in groups_of(layers, wanted.layers or layers)]
    objective = DistillationObjective(
        teacher, texts, tokenizer.pad_token_id, ends, how.temperature, independent=independent
    )
    length: dict[str, Any] = how.length
    options = replace(job.spec.optimization, learning_rate=how.learning_rate, **length)
    # Students of one shape, in several precisions, are one: the second finds the last checkpoint of the first.
    checkpoints = CheckpointFolder(job.folder / _FOLDER / wanted.shape)
    resume = checkpoints.newest()
    total = options.total_steps(len(texts))
    phase = Phase(job, "compress", total, f"steps of {wanted.shape}")

    def on_step(progress: StepProgress) -> None:
        phase.advance(progress.step, {"loss": progress.loss}, progress.remaining_s)

    outcome = train(
        student,
        objective,
        options,
        device=device,
        resume=resume,
        on_step=on_step,
        on_checkpoint=checkpoints.save,
        should_stop=should_stop,
    )
    phase.end()
    first, last = outcome.losses[0], outcome.losses[-1]
    logger.info("%s: the loss of %s went from %.4f to %.4f", job.run, wanted.shape, first, last)
    return student.to("cpu").eval()


def drop_students(folder: Path) -> None:
    """Deletes the students' checkpoints from a run's folder, once they are built."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)
