"""Splits conversations in the form of OpenAI's API into what was asked and what was answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.ingest.domain.record import RecordRefusedError
from services.ingest.engine.json_items import member

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True, slots=True)
class Conversation:
    """`asked` is the only question, or all turns before the last answer, each with its role."""

    asked: str
    answer: str
    system: str


def is_conversation(value: Any) -> bool:
    """Whether a value looks like a list of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, Mapping) and item.get("role") in _ROLES for item in value)
    )


def read_conversation(messages: Sequence[Any], place: str = "messages") -> Conversation:
    """The parts of a conversation.

    Raises:
        RecordRefusedError: a message has no role or content, or nothing was asked; names it.
    """
    turns: list[tuple[str, str]] = []
    for number, message in enumerate(messages):
        where = f"{place}[{number}]"
        if not isinstance(message, Mapping):
            raise RecordRefusedError(f"{where} must be an object.", reason="WRONG_MEMBER")
        role = member(message, "role", str, f"{where}.")
        if role not in _ROLES:
            known = ", ".join(_ROLES)
            raise RecordRefusedError(f"{where}.role must be one of {known}, not {role[:32]!a}.", reason="WRONG_MEMBER")
        turns.append((role, _content(message, where)))
    system = "\n".join(text for role, text in turns if role in ("system", "developer"))
    spoken = [(role, text) for role, text in turns if role not in ("system", "developer")]
    answer = spoken.pop()[1] if spoken and spoken[-1][0] == "assistant" else ""
    if not any(role == "user" for role, _ in spoken):
        raise RecordRefusedError(f"{place} has no message of the role user.", reason="MISSING_TEXT")
    asked = spoken[0][1] if len(spoken) == 1 else "\n\n".join(f"{role}: {text}" for role, text in spoken)
    return Conversation(asked, answer, system)


def _content(message: Mapping[str, Any], where: str) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        # Only parts of text are read, not pictures and sound.
        texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        if all(isinstance(text, str) for text in texts) and texts:
            return "\n".join(str(text) for text in texts)
        raise RecordRefusedError(f"{where}.content has no part of text.", reason="WRONG_MEMBER")
    if content is None and (message.get("tool_calls") or message.get("function_call")):
        return ""
    raise RecordRefusedError(f"{where}.content must be text or a list of parts.", reason="WRONG_MEMBER")
