"""Prompts and targets of a data set's records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.kit.errors import FieldViolation, InvalidArgumentError
from services.kit.prompts import PromptError, Prompts, chat_of
from services.training.domain.tasks import GenerationTask
from services.training.engine.tasks import Pair

_MIN_TEXT = 8


def prompts_of(folder: Path, task: GenerationTask) -> Prompts:
    """The prompts of a base model's folder, as serving will build them.

    Raises:
        InvalidArgumentError: the model's tokenizer or chat template cannot be used, or instruction and chat markers
            leave no room for a record's text.
    """
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        raise _refused("spec.base_model", "it has no tokenizer.json, which serving needs", "TOKENIZER_UNSUITABLE")
    prompts = Prompts(
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        _chat(folder),
        template=task.prompt_template,
        max_input_tokens=task.max_input_tokens,
        context_length=task.max_input_tokens + task.max_target_tokens,
        answer_tokens=task.max_target_tokens,
    )
    try:
        frame = prompts.frame_tokens
    except PromptError as error:
        raise _refused("spec.base_model", str(error), "CHAT_TEMPLATE_UNSUITABLE") from error
    if task.max_input_tokens - frame < _MIN_TEXT:
        wrong = (
            f"{task.max_input_tokens} is too small: instruction and chat markers alone take {frame} tokens, and a "
            f"record's text needs at least {_MIN_TEXT}"
        )
        raise _refused("spec.generation.max_input_tokens", wrong, "PROMPT_TOO_SHORT")
    return prompts


def training_pairs(
    prompts: Prompts, tokenizer: Any, task: GenerationTask, records: Sequence[Mapping[str, str]]
) -> list[Pair]:
    """Prompt and target of each record. The target ends with the end-of-turn token, which texts cannot contain."""
    return [
        Pair(
            prompts.of_text(record["text"]),
            [
                *tokenizer.encode(record[task.target_field], add_special_tokens=False, split_special_tokens=True)[
                    : task.max_target_tokens - 1
                ],
                tokenizer.eos_token_id,
            ],
        )
        for record in records
    ]


def _chat(folder: Path) -> Any:
    try:
        return chat_of(folder)
    except ValueError as error:
        raise _refused("spec.base_model", str(error), "CHAT_TEMPLATE_UNSUITABLE") from error


def _refused(field: str, wrong: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field}: {wrong}.", reason=reason, violations=[FieldViolation(field, wrong)])
