"""What answering needs from outside, by role."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from services.serving.domain.answer import Piece, Prompt, Sampling


@dataclass(frozen=True, slots=True)
class Served:
    """That a request was answered."""

    answer: str
    model_version: str
    method: str
    latency_ms: float
    answer_time: datetime
    label: str = ""
    score: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ServedLog(Protocol):
    """Takes note of answers without holding them up."""

    def add(self, served: Sequence[Served]) -> None:
        """Accepts answers; those that cannot be kept are counted and logged, never lost silently."""
        ...


class Deaths(Protocol):
    """Takes note of models whose process in the server seems to have died."""

    def generation(self, model: str) -> int:
        """The generation of the model's process now, to be kept with each request."""
        ...

    def report(self, model: str, generation: int) -> None:
        """A request of this generation showed that the process is dead, or stuck."""
        ...


class InferenceServer(Protocol):
    """Asks the server. The caller's cancellation and deadline reach it; errors are the kit's."""

    async def classify(self, model: str, texts: Sequence[str]) -> tuple[Sequence[Sequence[float]], int]:
        """Scores of every label for each text, in order, and the number of the version that answered."""
        ...

    def generate(self, model: str, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        """Pieces of an answer, the last one with its finish reason."""
        ...
