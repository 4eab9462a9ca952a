"""The report of a run: metrics with confidence intervals, examples, builds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    def figures(self, name: str = "") -> dict[str, float]:
        """The value and both ends of its interval as figures of a report, under the metric's own name or another."""
        name = name or self.name
        return {name: self.value, f"{name}_ci_low": self.ci_low, f"{name}_ci_high": self.ci_high}


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
    """One build, measured by the runtime that serves it. Times are medians over single requests.

    `loss` is the cross entropy per token of the reference answers, in nats; `loss_increase` its relative increase over
    the merged model's on the same examples. Both are None for classification, where `quality` counts hundreds of texts.
    """

    precision: str
    uri: str
    digest: str
    size_bytes: int
    quality: Metric
    tokens_per_second: float = 0.0
    time_to_first_token_ms: float = 0.0
    examples_per_second: float = 0.0
    latency_p50_ms: float = 0.0
    loss: Metric | None = None
    loss_increase: Metric | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The models on one set of examples; `over_base` and `over_champion` are tuned minus the other, paired."""

    tuned: Metric
    base: Metric | None = None
    champion: Metric | None = None
    over_base: Metric | None = None
    over_champion: Metric | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """The models on a part of the hold-out: its examples whose `attribute` has a value.

    `value` is its start, empty for examples without the attribute; `pooled_values`, unless it is zero, says how many
    values are pooled instead. `comparison` is None of a slice with too few examples. `p_worse` is the chance that any
    slice of the report looks as much worse than the champion, if neither model is better; None if there is no champion.
    """

    attribute: str
    value: str
    examples: int
    pooled_values: int = 0
    comparison: Comparison | None = None
    p_worse: float | None = None


@dataclass(frozen=True, slots=True)
class LossPoint:
    """The mean loss of the steps since the point before, up to `step`."""

    step: int
    loss: float


_MAX_POINTS = 200


def loss_curve(losses: Sequence[float]) -> tuple[LossPoint, ...]:
    """The loss of each step, as 200 points at most: each the mean of as many steps as the others."""
    width = -(-len(losses) // _MAX_POINTS)
    parts = ((at, losses[at : at + width]) for at in range(0, len(losses), max(1, width)))
    return tuple(LossPoint(at + len(part), sum(part) / len(part)) for at, part in parts)


@dataclass(frozen=True, slots=True)
class Report:
    """The results; `base` is None if the untrained model cannot answer (a fresh classification head).

    `tuned_loss` is the loss of the merged model, as `Variant.loss`. `warnings` say, for people, what was done otherwise
    than asked for. `champion` is that of the run `champion_run` on the hold-out, None if there was none. `corrections`
    compares the models on held-back feedback, None if there was none; `slices` compares them on parts of the hold-out.
    """

    tuned: Metric
    base: Metric | None = None
    difference: Metric | None = None
    examples: tuple[Example, ...] = ()
    variants: tuple[Variant, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    tuned_loss: Metric | None = None
    warnings: tuple[str, ...] = ()
    champion: Metric | None = None
    over_champion: Metric | None = None
    champion_run: str = ""
    corrections: Comparison | None = None
    loss_curve: tuple[LossPoint, ...] = ()
    slices: tuple[Slice, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON form, see `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        """The report from its JSON form.

        Raises:
            KeyError, TypeError, ValueError: the value is not a report.
        """
        return cls(
            tuned=_required(value["tuned"]),
            base=_metric(value["base"]),
            difference=_metric(value["difference"]),
            examples=tuple(Example(**item) for item in value["examples"]),
            variants=tuple(_variant(item) for item in value["variants"]),
            figures={str(name): float(figure) for name, figure in value["figures"].items()},
            # Reports of earlier releases in the database have no loss.
            tuned_loss=_metric(value.get("tuned_loss")),
            warnings=tuple(value.get("warnings", ())),
            # Reports of earlier releases name no champion and no corrections.
            champion=_metric(value.get("champion")),
            over_champion=_metric(value.get("over_champion")),
            champion_run=str(value.get("champion_run", "")),
            corrections=_comparison(value.get("corrections")),
            loss_curve=tuple(LossPoint(int(item["step"]), float(item["loss"])) for item in value.get("loss_curve", ())),
            # Reports of earlier releases have no slices.
            slices=tuple(
                Slice(**{**item, "comparison": _comparison(item["comparison"])}) for item in value.get("slices", ())
            ),
        )


def _required(value: Mapping[str, Any]) -> Metric:
    metric = Metric(**value)
    numbers: tuple[object, ...] = (metric.value, metric.ci_low, metric.ci_high, metric.sample_size)
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError(f"{value!r} is not a metric")
    return metric


def _metric(value: Mapping[str, Any] | None) -> Metric | None:
    return _required(value) if value else None


def _comparison(value: Mapping[str, Any] | None) -> Comparison | None:
    if not value:
        return None
    others = {name: _metric(value.get(name)) for name in ("base", "champion", "over_base", "over_champion")}
    return Comparison(tuned=_required(value["tuned"]), **others)


def _variant(value: Mapping[str, Any]) -> Variant:
    metrics = {name: _metric(value.get(name)) for name in ("loss", "loss_increase")}
    return Variant(**{**value, **metrics, "quality": _required(value["quality"])})
