"""What a run found: metrics with confidence intervals, examples, variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure with its 95 % confidence interval over `sample_size` examples."""

    name: str
    value: float
    ci_low: float
    ci_high: float
    sample_size: int


@dataclass(frozen=True, slots=True)
class Example:
    """One hold-out example before and after; `input` is its start."""

    record_id: str
    input: str
    reference: str
    base: str
    tuned: str


@dataclass(frozen=True, slots=True)
class Variant:
    """One build, measured by the runtime that serves it. Times are medians over single requests."""

    precision: str
    uri: str
    digest: str
    size_bytes: int
    quality: Metric
    tokens_per_second: float = 0.0
    time_to_first_token_ms: float = 0.0
    examples_per_second: float = 0.0
    latency_p50_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """All of it; `base` is None where the untrained model has no answer (a fresh classification head)."""

    tuned: Metric
    base: Metric | None = None
    difference: Metric | None = None
    examples: tuple[Example, ...] = ()
    variants: tuple[Variant, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON form, see `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        """The report from its JSON form."""
        return cls(
            tuned=Metric(**value["tuned"]),
            base=Metric(**value["base"]) if value["base"] else None,
            difference=Metric(**value["difference"]) if value["difference"] else None,
            examples=tuple(Example(**item) for item in value["examples"]),
            variants=tuple(Variant(**{**item, "quality": Metric(**item["quality"])}) for item in value["variants"]),
            figures=dict(value["figures"]),
        )
