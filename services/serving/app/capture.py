"""Which models' answers are kept, and how a text is masked before anything of it is written."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.kit.ids import sha256_hex
from services.kit.pseudonyms import user_pseudonym
from services.masking.masks import Mask
from services.serving.app.ports import Captured
from services.serving.domain.answer import Prompt

# Masking a longer text would hold up the other requests of the process: about a millisecond for each 16 KiB.
_MASKED_IN_PLACE = 16 * 1024
_SPAN = 1 << 32


@dataclass(frozen=True, slots=True)
class Capture:
    """What is kept of a model's answers: a share of them, from 0 to 1, masked.

    `user_key` makes the pseudonyms of users; without it none is kept.
    """

    sample: float
    mask: Mask
    user_key: str = ""

    def takes(self, answer: str) -> bool:
        """Whether an answer belongs to the share; it follows from its id, so that every process decides alike."""
        return int(sha256_hex("capture", answer)[:8], 16) < self.sample * _SPAN

    async def of(self, prompt: Prompt, text: str, tenant: str, user: str = "") -> Captured:
        """What may be kept of an answer; of the user who asked, a pseudonym."""
        asked = prompt.text if prompt.text is not None else _conversation(prompt)
        if len(asked) + len(text) <= _MASKED_IN_PLACE:
            masked = self.mask(asked), self.mask(text)
        else:
            masked = await asyncio.to_thread(lambda: (self.mask(asked), self.mask(text)))
        asked_by = user_pseudonym(self.user_key, tenant, user)
        return Captured(masked[0], prompt.text is None, masked[1], tenant, asked_by)


class CaptureRules:
    """Captures by model. Changes replace all of them, so a reader needs no lock. Without rules nothing is kept."""

    def __init__(self) -> None:
        self._by_model: Mapping[str, Capture] = {}

    def replace(self, rules: Iterable[tuple[str, Capture]]) -> None:
        """Takes these in place of what was known."""
        self._by_model = dict(rules)

    def of(self, model: str, answer: str) -> Capture | None:
        """How an answer of a model is to be kept; None if nothing of it is."""
        capture = self._by_model.get(model)
        return capture if capture is not None and capture.takes(answer) else None


def _conversation(prompt: Prompt) -> str:
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt.conversation)
