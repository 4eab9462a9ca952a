"""Prompts out of records."""

from __future__ import annotations

from typing import Any

import pytest

from services.kit.errors import InvalidArgumentError
from services.training.domain.recipe import GenerationTask
from services.training.engine.prompts import check_room, prompt_ids


class Letters:
    """A tokenizer of letters, with a chat template that puts a mark on either side."""

    chat_template = "<{}>"

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return f"<{messages[0]['content']}>"


def prompt(template: str, longest: int = 100, **record: str) -> str:
    return Letters().decode(prompt_ids(Letters(), GenerationTask(template, "answer", longest), record))


def test_only_the_text_is_cut() -> None:
    assert prompt("sport: {text}!", 14, text="a long story") == "<sport: a lo!>"


def test_what_a_record_holds_is_never_a_placeholder() -> None:
    assert prompt('{text} {"x": 1}', topic="sport", text="{topic}") == '<{topic} {"x": 1}>'


def test_a_prompt_without_room_for_the_text_is_refused() -> None:
    frame = len("<Say !>")
    check_room(Letters(), GenerationTask("Say {text}!", "answer", frame + 8))
    with pytest.raises(InvalidArgumentError, match=rf"spec\.generation\.max_input_tokens: .* take {frame} tokens"):
        check_room(Letters(), GenerationTask("Say {text}!", "answer", frame + 7))
