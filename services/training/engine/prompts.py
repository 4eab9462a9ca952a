"""From records to token ids: prompt templates, chat templates, truncation of the record's text only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.kit.errors import InvalidArgumentError
from services.training.domain.recipe import GenerationTask
from services.training.engine.tasks import Pair

_LEAST_TEXT = 8


def prompt_ids(tokenizer: Any, task: GenerationTask, record: Mapping[str, str]) -> list[int]:
    """The chat prompt of a record, at most `max_input_tokens` long.

    Only the record's text is cut, at its end, so that instruction and chat markers stay whole.
    """
    frame = len(_chat(tokenizer, _fill(task.prompt_template, "")))
    room = max(1, task.max_input_tokens - frame)
    text_ids = tokenizer.encode(record["text"], add_special_tokens=False)
    text = record["text"] if len(text_ids) <= room else tokenizer.decode(text_ids[:room])
    ids = _chat(tokenizer, _fill(task.prompt_template, text))
    return ids if len(ids) <= task.max_input_tokens + 2 else [*ids[: task.max_input_tokens]]


def check_room(tokenizer: Any, task: GenerationTask) -> None:
    """Looks whether a record's text fits in beside instruction and chat markers.

    Raises:
        InvalidArgumentError: it does not: every prompt would be the same.
    """
    frame = len(_chat(tokenizer, _fill(task.prompt_template, "")))
    if task.max_input_tokens - frame < _LEAST_TEXT:
        wrong = (
            f"{task.max_input_tokens} is too little; instruction and chat markers alone take {frame} tokens, and a "
            f"record's text wants {_LEAST_TEXT} at least"
        )
        raise InvalidArgumentError(f"spec.generation.max_input_tokens: {wrong}.", reason="PROMPT_TOO_SHORT")


def training_pairs(tokenizer: Any, task: GenerationTask, records: Sequence[Mapping[str, str]]) -> list[Pair]:
    """Prompt and target of each record; the target ends with the end-of-turn token."""
    return [
        Pair(
            prompt_ids(tokenizer, task, record),
            [
                *tokenizer.encode(record[task.target_field], add_special_tokens=False)[: task.max_target_tokens - 1],
                tokenizer.eos_token_id,
            ],
        )
        for record in records
    ]


def _fill(template: str, text: str) -> str:
    # As the serving side does it; not str.format: a template may hold other braces.
    return template.replace("{text}", text)


def _chat(tokenizer: Any, user_message: str) -> list[int]:
    if tokenizer.chat_template is None:
        return list(tokenizer.encode(user_message + "\n\n"))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": user_message}], add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer.encode(text, add_special_tokens=False))
