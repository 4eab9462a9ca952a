"""The gate: which builds may be published, and which of them is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

MIN_CORRECTIONS = 10
"""Rules about held-back feedback apply from this many records on."""

SLICE_LEVEL = 0.05
"""Of a model that is as good as the champion on every slice, the chance that the rule about slices refuses it."""

# A loss of exactly the limit passes, despite rounding errors.
_ROUNDING = 1e-9


class Preference(Enum):
    """Which of the builds that pass is the best."""

    FASTEST = "fastest"
    SMALLEST = "smallest"
    BEST_QUALITY = "best_quality"


@dataclass(frozen=True, slots=True)
class Gate:
    """Limits of the builds and of the tuned model; None demands nothing."""

    max_quality_loss: float
    """A build's relative loss of quality against the merged tuned model."""
    min_gain_over_base: float = 0.0
    """The tuned model's relative gain over the base model."""
    min_quality: float = 0.0
    """The tuned model's metric."""
    max_loss_to_champion: float | None = None
    """The tuned model's relative loss against the champion."""
    min_quality_on_corrections: float | None = None
    """The tuned model's metric on held-back feedback."""
    min_gain_on_corrections: float | None = None
    """Its gain there over the champion, or over the base model if there is no champion."""
    max_slice_loss_to_champion: float | None = None
    """The tuned model's relative loss against the champion on a slice, where chance does not explain it."""


@dataclass(frozen=True, slots=True)
class Build:
    """One build as training measured it; `speed` in tokens or texts a second, `quality` in the metric's unit.

    `loss` is its cross entropy per token in nats and `loss_increase` how much that is above the merged model's on
    the same examples, 0.01 for one percent; both None if no loss was measured (classification).
    """

    precision: str
    uri: str
    digest: str
    size_bytes: int
    speed: float
    speed_unit: str
    quality: float
    loss: float | None = None
    loss_increase: float | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class OnCorrections:
    """The tuned model on held-back feedback; the gains are paired, None where the other model was not asked."""

    count: int
    tuned: Figure
    over_champion: Figure | None = None
    over_base: Figure | None = None

    @property
    def gain(self) -> tuple[Figure, str] | None:
        """Over the champion, else over the base model, with its name; None if there is neither."""
        if self.over_champion is not None:
            return self.over_champion, "champion"
        return None if self.over_base is None else (self.over_base, "base model")

    def __str__(self) -> str:
        words = f"{self.tuned} on {self.count:,} held-back corrections"
        gain = self.gain
        return words if gain is None else f"{words}, {gain[0].value:+.3f} over the {gain[1]}"


@dataclass(frozen=True, slots=True)
class OnSlice:
    """Tuned model and champion on a part of the hold-out; `p_worse` as in tidemill.training.v1.Slice."""

    name: str
    count: int
    tuned: float
    champion: float
    over_champion: Figure
    p_worse: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What the gate looks at; `base` is None if the untrained model has no answer, `champion` if there is none, and
    `corrections` if no feedback was held back. More of the metric is better.
    """

    metric: str
    base: float | None
    tuned: float
    builds: tuple[Build, ...]
    champion: float | None = None
    over_champion: Figure | None = None
    corrections: OnCorrections | None = None
    slices: tuple[OnSlice, ...] = ()
    """Those that were large enough to be measured."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's verdict on one build."""

    precision: str
    passed: bool
    quality_loss: float
    why: str
    chosen: bool = False


def measured(report: Mapping[str, Any]) -> Measured:
    """What the gate needs of a report, the JSON form of tidemill.training.v1.Report."""
    base = report.get("base")
    return Measured(
        metric=str(report["tuned"]["name"]),
        base=float(base.get("value", 0.0)) if base else None,
        tuned=float(report["tuned"].get("value", 0.0)),
        builds=tuple(_build(item) for item in report.get("variants", ())),
        champion=_value(report.get("champion")),
        over_champion=_figure(report.get("over_champion")),
        corrections=_on_corrections(report.get("corrections")),
        slices=tuple(_on_slice(item) for item in report.get("slices", ()) if "p_worse" in item),
    )


def _on_corrections(found: Mapping[str, Any] | None) -> OnCorrections | None:
    if not found:
        return None
    tuned = _figure(found["tuned"])
    assert tuned is not None
    count = int(found["tuned"].get("sample_size", 0))
    return OnCorrections(count, tuned, _figure(found.get("over_champion")), _figure(found.get("over_base")))


def _on_slice(item: Mapping[str, Any]) -> OnSlice:
    found = item["comparison"]
    tuned, champion, over = (_figure(found[name]) for name in ("tuned", "champion", "over_champion"))
    assert tuned is not None
    assert champion is not None
    assert over is not None
    pooled = int(item.get("pooled_values", 0))
    value = f"{pooled:,} pooled values" if pooled else item.get("value", "") or "none"
    name = f"{item['attribute']} {value}"
    return OnSlice(name, int(item.get("examples", 0)), tuned.value, champion.value, over, float(item["p_worse"]))


def _figure(metric: Mapping[str, Any] | None) -> Figure | None:
    if not metric:
        return None
    low, high = (float(metric.get(name, 0.0)) for name in ("ci_low", "ci_high"))
    return Figure(float(metric.get("value", 0.0)), low, high)


def _build(item: Mapping[str, Any]) -> Build:
    tokens, texts = float(item.get("tokens_per_second", 0.0)), float(item.get("examples_per_second", 0.0))
    quality = _value(item.get("quality"))
    return Build(
        precision=str(item["precision"]),
        uri=str(item["uri"]),
        digest=str(item["digest"]),
        size_bytes=int(item.get("size_bytes", 0)),
        speed=tokens or texts,
        speed_unit="tokens/s" if tokens else "texts/s",
        quality=math.nan if quality is None else quality,
        loss=_value(item.get("loss")),
        loss_increase=_value(item.get("loss_increase")),
    )


def _value(metric: Mapping[str, Any] | None) -> float | None:
    return float(metric.get("value", 0.0)) if metric else None


def judge(gate: Gate, preference: Preference, found: Measured) -> tuple[Verdict, ...]:
    """A verdict on every build, in the report's order; at most one is chosen.

    A build's loss of quality is the relative increase of its cross entropy over the merged model's where that was
    measured: on a small hold-out it moves far less by chance than a metric of sampled answers. Else it is the
    relative decrease of the metric. If the tuned model itself misses a limit, all its builds fail.
    """
    missed = (
        _too_bad(gate, found)
        or _too_little_gain(gate, found)
        or _worse_than_champion(gate, found)
        or _not_learnt(gate, found)
        or _worse_on_a_slice(gate, found)
    )
    verdicts = [_verdict(gate, found, build, missed) for build in found.builds]
    passed = [build for build, verdict in zip(found.builds, verdicts, strict=True) if verdict.passed]
    if not passed:
        return tuple(verdicts)
    best, words = _best(preference, passed)
    return tuple(
        replace(verdict, chosen=True, why=f"{verdict.why} Published: {words}.") if build is best else verdict
        for build, verdict in zip(found.builds, verdicts, strict=True)
    )


def _too_bad(gate: Gate, found: Measured) -> str:
    if not math.isfinite(found.tuned):
        return f"The tuned model's {found.metric} could not be measured ({found.tuned}); its training diverged."
    # No minimum by default, also for metrics that can be negative.
    if gate.min_quality <= 0 or found.tuned >= gate.min_quality:
        return ""
    return (
        f"The tuned model's {found.metric} {found.tuned:.3f} is below {gate.min_quality:.3f}, the minimum of the gate."
    )


def _too_little_gain(gate: Gate, found: Measured) -> str:
    if gate.min_gain_over_base <= 0 or found.base is None:
        return ""
    wanted = found.base + abs(found.base) * gate.min_gain_over_base
    if found.tuned >= wanted - abs(wanted) * _ROUNDING and found.tuned > found.base:
        return ""
    gain = f"{found.tuned / found.base - 1:+.1%}" if found.base > 0 else "none"
    return (
        f"The tuned model's {found.metric} {found.tuned:.3f} does not improve enough on the base model's "
        f"{found.base:.3f} (gain {gain}, wanted {gate.min_gain_over_base:+.0%})."
    )


def _worse_than_champion(gate: Gate, found: Measured) -> str:
    margin, champion, over = gate.max_loss_to_champion, found.champion, found.over_champion
    if margin is None or champion is None or over is None:
        return ""
    least = -abs(champion) * margin
    if over.value >= least - _ROUNDING:
        return ""
    return (
        f"The tuned model's {found.metric} {found.tuned:.3f} is below the champion's {champion:.3f}: the difference is "
        f"{over}, and the gate allows {least:.3f}."
    )


def _not_learnt(gate: Gate, found: Measured) -> str:
    learnt = found.corrections
    if learnt is None or learnt.count < MIN_CORRECTIONS:
        return ""
    least, wanted = gate.min_quality_on_corrections, gate.min_gain_on_corrections
    if least is not None and learnt.tuned.value < least - _ROUNDING:
        return (
            f"The tuned model's {found.metric} on {learnt.count:,} held-back corrections is {learnt.tuned}, below "
            f"{least:.3f}, the minimum of the gate."
        )
    gain = learnt.gain
    if wanted is not None and gain is not None and gain[0].value < wanted - _ROUNDING:
        return (
            f"On {learnt.count:,} held-back corrections the tuned model's {found.metric} gains {gain[0]} over the "
            f"{gain[1]}; the gate wants {wanted:+.3f}."
        )
    return ""


def _worse_on_a_slice(gate: Gate, found: Measured) -> str:
    margin = gate.max_slice_loss_to_champion
    if margin is None:
        return ""
    worse = [
        each
        for each in found.slices
        if each.p_worse <= SLICE_LEVEL and each.over_champion.value < -abs(each.champion) * margin - _ROUNDING
    ]
    if not worse:
        return ""
    worst = min(worse, key=lambda each: each.over_champion.value)
    others = f" So it is on {len(worse) - 1:,} more." if len(worse) > 1 else ""
    return (
        f"On the slice {worst.name} ({worst.count:,} records) the tuned model's {found.metric} {worst.tuned:.3f} is "
        f"below the champion's {worst.champion:.3f}: the difference is {worst.over_champion}, p = {worst.p_worse:.3f} "
        f"over all {len(found.slices):,} slices, and the gate allows {-abs(worst.champion) * margin:.3f}.{others}"
    )


def _unsliced(gate: Gate, found: Measured) -> str:
    """A demand on slices that says nothing is said."""
    if gate.max_slice_loss_to_champion is None or found.champion is None or found.slices:
        return ""
    return " No slice of the hold-out was measured, so max_slice_loss_to_champion demands nothing."


def _verdict(gate: Gate, found: Measured, build: Build, missed: str) -> Verdict:
    if build.loss_increase is not None:
        loss, measure, value, worse, better = build.loss_increase, "cross entropy", build.loss, "above", "below"
    else:
        loss = _decrease(found.tuned, build.quality)
        measure, value, worse, better = found.metric, build.quality, "below", "above"
    if missed:
        return Verdict(build.precision, False, loss, missed)
    if not math.isfinite(loss):
        return Verdict(build.precision, False, loss, f"{measure} {value} is not a finite number: the build is broken.")
    words = f"{loss:.1%} {worse}" if loss > 0.0005 else f"{-loss:.1%} {better}" if loss < -0.0005 else "equal to"
    passed = loss <= gate.max_quality_loss + _ROUNDING
    why = f"{measure} {value:.3f} is {words} the tuned model's; the limit is {gate.max_quality_loss:.1%}."
    why += _unsliced(gate, found)
    return Verdict(build.precision, passed, loss, why)


def _decrease(tuned: float, quality: float) -> float:
    """How much lower a build's quality is, relative to the tuned model's.

    If the tuned model's is zero: 1 if the build's is negative, else 0.
    """
    if tuned == 0 and math.isfinite(quality):
        return 1.0 if quality < 0 else 0.0
    return (tuned - quality) / abs(tuned) if tuned else math.nan


def _best(preference: Preference, passed: Sequence[Build]) -> tuple[Build, str]:
    match preference:
        case Preference.SMALLEST:
            best = min(passed, key=lambda build: (build.size_bytes, -build.speed))
            words = f"smallest of the {len(passed)} that passed, {best.size_bytes / 1e6:,.0f} MB"
        case Preference.BEST_QUALITY:
            # Losses rank builds only if each build has one.
            by_loss = all(build.loss is not None for build in passed)
            best = max(passed, key=lambda build: (-(build.loss or 0.0) if by_loss else 0.0, build.quality, build.speed))
            words = f"highest quality of the {len(passed)} that passed"
        case Preference.FASTEST:
            best = max(passed, key=lambda build: (build.speed, -build.size_bytes))
            words = f"fastest of the {len(passed)} that passed, {best.speed:,.1f} {best.speed_unit}"
    if len(passed) == 1:
        words = "the only one that passed"
    return best, words
