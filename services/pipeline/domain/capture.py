"""What is kept of answers: a pipeline's rule, and a captured answer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from services.masking.masks import MaskSpec
from services.pipeline.domain.judge import JudgeSpec

DEFAULT_KEEP_DAYS = 30
DEFAULT_LEASE_MINUTES = 30.0


@dataclass(frozen=True, slots=True)
class ReviewRules:
    """Which answers people are to look at, beside those that were rated badly.

    Shares are from 0 to 1, `low_confidence` is a least score, `lease_minutes` how long someone has an answer alone.
    """

    random_share: float = 0.0
    low_confidence: float = 0.0
    double_share: float = 0.0
    lease_minutes: float = DEFAULT_LEASE_MINUTES
    judges_at_odds: bool = False


@dataclass(frozen=True, slots=True)
class Capture:
    """What is kept of a model's answers: a share from 0 to 1, masked, for some days. `review` is None for no queue.

    `judges` rate what is kept.
    """

    sample: float = 1.0
    masks: tuple[MaskSpec, ...] = ()
    keep_days: int = DEFAULT_KEEP_DAYS
    review: ReviewRules | None = None
    judges: tuple[JudgeSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class CapturePolicy:
    """The rule of a model, and the pipeline that it comes from."""

    model: str
    pipeline: str
    capture: Capture


@dataclass(frozen=True, slots=True)
class CapturedAnswer:
    """An answer with what was asked, both masked; `text` is empty for a classifier, `label` for a writer."""

    name: str
    model_version: str
    method: str
    prompt: str
    text: str
    answer_time: datetime
    conversation: bool = False
    label: str = ""
    score: float = 0.0
    tenant: str = ""
    role: str = "serving"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_ms: float = 0.0
    asked_by: str = ""
    """Pseudonym of the user that the caller named; it serves to erase, and leaves the service by no call."""

    @property
    def model(self) -> str:
        """`models/{model}`."""
        return self.model_version.partition("/versions/")[0]

    @property
    def is_classification(self) -> bool:
        """Whether it is a label, not a text."""
        return self.method == "predict"

    @property
    def given(self) -> str:
        """What was answered: the text or the label."""
        return self.label if self.is_classification else self.text
