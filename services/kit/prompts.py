"""Builds the tokens of a prompt from a text or a conversation, for training, evaluation and serving alike.

A model whose prompts have another form than in training answers badly, and no error shows it. So this module is copied
into Triton with each published version, and therefore imports nothing of Tidemill.

Control tokens come from the chat template alone: what looks like one in a text stays text, so that no caller can end
the user's turn and write the system's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

TOO_LONG = "The prompt has"
"""How the error for a prompt beyond the context begins: Triton passes on only the error's text."""
NO_TOOLS = "The chat template of this model has no place for tools, so it cannot know them; ask for JSON by a schema."
"""The whole error for tools, which callers match."""

Messages = Sequence[Mapping[str, Any]]
"""A conversation: objects with `role` and `content`; an assistant's may have `tool_calls`, a tool's `tool_call_id`."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A model's chat template: renders a conversation, with the tools that may be called, as one text that ends where
    the answer begins.
    """

    render: Callable[[Messages, Sequence[Any] | None], str]
    takes_tools: bool = False
    """Whether it has a place for tools and calls of them."""

    def __call__(self, messages: Messages, tools: Sequence[Any] | None = None) -> str:
        """The text.

        Raises:
            PromptError: the template does not accept this conversation.
        """
        return self.render(messages, tools)


class PromptError(ValueError):
    """The input cannot be a prompt; the message is for the caller."""


class Prompts:
    """Builds the prompts of one model. Thread-safe."""

    def __init__(
        self,
        tokenizer: Any,
        chat: Chat | None,
        *,
        template: str,
        max_input_tokens: int,
        context_length: int,
        answer_tokens: int,
    ) -> None:
        """Args:
        tokenizer: a `tokenizers.Tokenizer`, used by this object only.
        chat: the model's chat template; None if it has none.
        template: the user's message, with `{text}` for a record's text; empty for the text itself.
        max_input_tokens: longest prompt of a record; 0 for the longest that the context allows.
        context_length: limit of prompt and answer together, in tokens.
        answer_tokens: tokens reserved for the answer to a record.
        """
        # A tokenizer file may contain the truncation setting of whoever saved it.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self._chat, self._template = tokenizer, chat, template
        self._context_length = context_length
        longest = context_length - answer_tokens
        self._longest = min(max_input_tokens or longest, longest)

    @cached_property
    def frame_tokens(self) -> int:
        """Length of the prompt for an empty text: instruction and chat markers.

        Raises:
            PromptError: the chat template does not accept a single user message.
        """
        return len(self._of_user(""))

    def of_text(self, text: str) -> list[int]:
        """Tokens for a record's text. A text that is too long is cut at its end; instruction and markers stay whole.

        Raises:
            PromptError: the instruction alone exceeds the model's context.
        """
        return self.cut_to_fit(text)[0]

    def cut_to_fit(self, text: str) -> tuple[list[int], int]:
        """As `of_text`, and how many tokens of the text were left out at its end."""
        room = max(1, self._longest - self.frame_tokens)
        encoding = self._plain.encode(text, add_special_tokens=False)
        tokens = self._of_user(_cut(text, encoding.offsets, room))
        while len(tokens) > self._longest and room > 1:
            # Characters on both sides of a seam may become more tokens together than apart.
            room = max(1, room - (len(tokens) - self._longest))
            tokens = self._of_user(_cut(text, encoding.offsets, room))
        return self._checked(tokens), max(0, len(encoding.offsets) - room)

    def of_messages(self, messages_json: str, tools_json: str = "") -> list[int]:
        """Tokens for a conversation: `Messages` as JSON. It is never cut.

        Args:
            messages_json: the conversation.
            tools_json: JSON list of the functions that may be called, as OpenAI's API has them; empty without.

        Raises:
            PromptError: it is not a list of messages, exceeds the model's context, or the chat template knows no tools.
        """
        try:
            messages = json.loads(messages_json)
        except ValueError as error:
            raise PromptError(f"messages_json is not JSON: {error}") from error
        if not isinstance(messages, list) or not messages or not all(_is_message(item) for item in messages):
            raise PromptError("messages_json must be a list of objects with the texts `role` and `content`.")
        calls = tools_json or any("tool_calls" in item or item["role"] == "tool" for item in messages)
        if calls and not (self._chat is not None and self._chat.takes_tools):
            raise PromptError(NO_TOOLS)
        return self._checked(self._of_conversation(messages, json.loads(tools_json) if tools_json else None))

    def _of_user(self, text: str) -> list[int]:
        # Not str.format: a template may contain other braces.
        content = self._template.replace("{text}", text) if self._template else text
        return self._of_conversation([{"role": "user", "content": content}])

    def _of_conversation(self, messages: Messages, tools: Sequence[Any] | None = None) -> list[int]:
        if self._chat is None:
            text = "".join(item["content"] + "\n\n" for item in messages)
            return list(self._plain.encode(text, add_special_tokens=True).ids)
        if self._control is None or not any(map(self._control.search, _texts([messages, tools]))):
            # The chat template writes the special tokens itself.
            return list(self._tokenizer.encode(self._chat(messages, tools), add_special_tokens=False).ids)
        return self._with_lookalikes(messages, tools, self._chat, self._control)

    def _with_lookalikes(
        self, messages: Messages, tools: Sequence[Any] | None, chat: Chat, control: re.Pattern[str]
    ) -> list[int]:
        """Tokens of a conversation whose texts contain what looks like control tokens.

        The template sees a placeholder for each, so that those in its output are its own.
        """
        said = "".join(_texts([messages, tools]))
        mark = next(char for char in map(chr, range(0xE000, 0xF900)) if char not in said)
        found: list[str] = []

        def hide(match: re.Match[str]) -> str:
            found.append(match[0])
            return f"{mark}{len(found) - 1}{mark}"

        def hidden(value: Any) -> Any:
            if isinstance(value, str):
                return control.sub(hide, value)
            if isinstance(value, Mapping):
                return {hidden(key): hidden(item) for key, item in value.items()}
            return [hidden(item) for item in value] if isinstance(value, Sequence) else value

        tokens: list[int] = []
        for piece in re.split(f"({control.pattern})", chat(hidden(messages), hidden(tools))):
            if control.fullmatch(piece):
                tokens.append(self._tokenizer.token_to_id(piece))
            else:
                text = re.sub(f"{mark}([0-9]+){mark}", lambda match: found[int(match[1])], piece)
                tokens += self._plain.encode(text, add_special_tokens=False).ids
        return tokens

    @cached_property
    def _plain(self) -> Any:
        """The tokenizer for texts of callers: it takes what looks like a special token as text."""
        plain = type(self._tokenizer).from_str(self._tokenizer.to_str())
        plain.encode_special_tokens = True
        return plain

    @cached_property
    def _control(self) -> re.Pattern[str] | None:
        """The special tokens. Others that were added, such as `<think>`, are text that templates look for."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        special = sorted((token.content for token in added if token.special), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, special))) if special else None

    def _checked(self, tokens: list[int]) -> list[int]:
        if not tokens:
            raise PromptError("The prompt is empty.")
        if len(tokens) >= self._context_length:
            raise PromptError(
                f"{TOO_LONG} {len(tokens)} tokens; with at least one token of answer the model's context holds "
                f"{self._context_length}."
            )
        return tokens


def chat_of(folder: Path) -> Chat | None:
    """The chat template of a model folder in Hugging Face's layout; None if it has none.

    Raises:
        ValueError: it is not a valid template.
    """
    file, config = folder / "chat_template.jinja", json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    template = file.read_text("utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(template, list):
        template = next((item["template"] for item in template if item["name"] == "default"), None)
    if not template:
        return None
    special = {name: item["content"] if isinstance(item, dict) else item for name, item in config.items()}
    return chat_template(
        template, {name: item for name, item in special.items() if name.endswith("_token") and isinstance(item, str)}
    )


def chat_template(template: str, special_tokens: Mapping[str, str]) -> Chat:
    """A chat template as transformers renders it: Jinja in a sandbox, with transformers' additions to the language.

    Args:
        template: its source.
        special_tokens: tokens that the template may refer to, for example `bos_token`.

    Raises:
        ValueError: it is not a valid template.
    """
    from jinja2 import TemplateError, meta, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks answers for a loss over whole conversations; it does not change the text."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: object, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = as_json
    environment.globals.update(
        raise_exception=refuse, strftime_now=lambda format: datetime.now().astimezone().strftime(format)
    )
    try:
        compiled = environment.from_string(template)
        variables = meta.find_undeclared_variables(environment.parse(template))
    except TemplateError as error:
        raise ValueError(f"the chat template is not valid: {error}") from error

    def render(messages: Messages, tools: Sequence[Any] | None) -> str:
        try:
            return compiled.render(
                messages=messages, add_generation_prompt=True, tools=tools, documents=None, **special_tokens
            )
        except Exception as error:
            # The template is the model's own code: whatever it raises means that it does not accept this conversation.
            raise PromptError(f"The chat template does not accept this conversation: {error}") from error

    return Chat(render, takes_tools="tools" in variables)


def _texts(value: Any) -> Iterator[str]:
    """All texts inside a value of JSON, keys of objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def _cut(text: str, offsets: Sequence[tuple[int, int]], tokens: int) -> str:
    """The part of a text before token number `tokens`; never cuts a character in two."""
    return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]]


def _is_message(item: object) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("role"), str) and isinstance(item.get("content"), str)
