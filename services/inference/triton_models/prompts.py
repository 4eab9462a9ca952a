"""From what a caller sends to the tokens of a prompt, as in training and evaluation: template, chat template, limits.

Only a record's text is cut, at its end, to the length that the model was trained on; a conversation is taken whole
or refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

TOO_LONG = "The prompt has"
"""How the text of the error for a prompt beyond the context begins: Triton passes on little more than a text."""


class PromptError(ValueError):
    """What the caller sent cannot be a prompt; the message is for the caller."""


@dataclass(frozen=True, slots=True)
class PromptBuilder:
    """Builds prompts of one model.

    `encode` and `decode` are the tokenizer's, without special tokens of its own; `chat` applies the model's chat
    template to messages in JSON. `context_length` counts prompt and answer; of it `answer_tokens` are kept free when a
    record's text is cut.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    chat: Callable[[str], str]
    prompt_template: str
    max_input_tokens: int
    context_length: int
    answer_tokens: int

    def of_text(self, text: str) -> list[int]:
        """Tokens for a record's text."""
        frame = len(self._user(self._fill("")))
        longest = self.context_length - self.answer_tokens
        room = max(1, min(self.max_input_tokens or longest, longest) - frame)
        tokens = self.encode(text)
        kept = text if len(tokens) <= room else self.decode(tokens[:room])
        return self._checked(self._user(self._fill(kept)))

    def of_messages(self, messages_json: str) -> list[int]:
        """Tokens for a conversation: a JSON list of objects with `role` and `content`.

        Raises:
            PromptError: it is none, or longer than the model's context.
        """
        try:
            messages = json.loads(messages_json)
        except ValueError as error:
            raise PromptError(f"messages_json is not JSON: {error}") from error
        if not isinstance(messages, list) or not messages or not all(_is_message(item) for item in messages):
            raise PromptError("messages_json must be a list of objects with the texts `role` and `content`.")
        return self._checked(self.encode(self.chat(json.dumps(messages, ensure_ascii=False))))

    def _fill(self, text: str) -> str:
        return self.prompt_template.replace("{text}", text) if self.prompt_template else text

    def _user(self, message: str) -> list[int]:
        return self.encode(self.chat(json.dumps([{"role": "user", "content": message}], ensure_ascii=False)))

    def _checked(self, tokens: list[int]) -> list[int]:
        if not tokens:
            raise PromptError("The prompt is empty.")
        if len(tokens) >= self.context_length:
            raise PromptError(
                f"{TOO_LONG} {len(tokens)} tokens; with at least one token of answer the model's context holds "
                f"{self.context_length}."
            )
        return tokens


def _is_message(item: object) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("role"), str) and isinstance(item.get("content"), str)
