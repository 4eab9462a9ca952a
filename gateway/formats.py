"""Numbers, sizes, progress and recipes as a person reads them, on the command line and in the console."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.json_format import MessageToDict
from tidemill.cleaning.v1.dataset_pb2 import DatasetVersion, OperatorSpec
from tidemill.common.v1.failure_pb2 import Metric, Progress
from tidemill.pipeline.v1.cycle_pb2 import Stage
from tidemill.pipeline.v1.judge_pb2 import Judge, JudgeSpec
from tidemill.training.v1.run_pb2 import Slice


@dataclass(frozen=True, slots=True)
class Status:
    """A state: `tone` is good, busy, warn, bad or idle, and never shown without the word."""

    word: str
    tone: str


_METRICS = {
    "rouge_l": "ROUGE-L",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "entity_f1": "entity F1",
    "quadratic_weighted_kappa": "quadratic weighted kappa",
    "mrr_at_10": "MRR@10",
}
SLICE_LEVEL = 0.05
"""A slice is worse than the champion where chance explains its loss with at most this probability, as in the gate."""
_SIZES = ("B", "kB", "MB", "GB", "TB")


def duration(seconds: float) -> str:
    """`0.4 s`, `12.3 s`, `4:05`, `1:02:03`."""
    if seconds < 60:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def milliseconds(seconds: float) -> str:
    """`0.42 ms`, `12.3 ms`, `1.2 s`."""
    value = seconds * 1000
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 1000 else duration(seconds)


def size(count: float) -> str:
    """`512 B`, `138 MB`, in powers of a thousand."""
    step = 0
    while count >= 999.5 and step < len(_SIZES) - 1:
        count /= 1000
        step += 1
    return f"{count:.0f} {_SIZES[step]}" if step == 0 or count >= 99.5 else f"{count:.1f} {_SIZES[step]}"


def rate(value: float) -> str:
    """`1,130`, `8.4`, `0.31`: at least two significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def metric_name(name: str) -> str:
    """The usual name of a metric, as in papers."""
    return _METRICS.get(name, name)


def interval(metric: Metric, signed: bool = False) -> str:
    """`[0.203, 0.243]`."""
    form = "+.3f" if signed else ".3f"
    return f"[{metric.ci_low:{form}}, {metric.ci_high:{form}}]"


def slice_name(found: Slice) -> str:
    """`source: news`, `source: 12 more values`, `language: none`."""
    if found.pooled_values:
        return f"{found.attribute}: {found.pooled_values:,} more value{'s' if found.pooled_values > 1 else ''}"
    return f"{found.attribute}: {found.value or 'none'}"


def elapsed(stage: Stage, now: float) -> float | None:
    """Seconds that a stage has taken so far; None before it began."""
    if not stage.HasField("start_time"):
        return None
    end = stage.end_time.ToNanoseconds() / 1e9 if stage.HasField("end_time") else now
    return max(0.0, end - stage.start_time.ToNanoseconds() / 1e9)


def figures(progress: Progress, *, brief: bool = False) -> list[str]:
    """Count, rate, figures and time left of a progress, as texts; `brief` omits the rate."""
    parts: list[str] = []
    left = progress.remaining.ToNanoseconds() / 1e9 if progress.done < progress.total else 0.0
    unit = f" {progress.unit}" if progress.unit else ""
    if progress.total:
        parts.append(f"{progress.done:,}/{progress.total:,}{unit}")
    elif progress.done:
        parts.append(f"{progress.done:,}{unit}")
    if progress.rate > 0 and not (brief and left > 0):
        parts.append(f"{rate(progress.rate)}/s")
    if "tokens_per_second" in progress.figures:
        parts.append(f"{rate(progress.figures['tokens_per_second'])} tok/s")
    if "loss" in progress.figures:
        parts.append(f"loss {progress.figures['loss']:.2f}")
    if left > 0:
        parts.append(f"{duration(left)} left")
    return parts


def drops(version: DatasetVersion) -> list[tuple[str, int]]:
    """Reasons for which records were rejected, with their number, the most frequent first."""
    return sorted(version.rejected_by_reason.items(), key=lambda item: (-item[1], item[0]))


def recipe(operators: Iterable[OperatorSpec]) -> list[tuple[str, str]]:
    """The operators, each with its parameters as JSON; empty without any."""
    return [
        (
            each.name,
            json.dumps(MessageToDict(each.params), ensure_ascii=False, sort_keys=True) if each.params.fields else "",
        )
        for each in operators
    ]


def judge_kind(spec: JudgeSpec) -> str:
    """What rates, in a few words."""
    match spec.WhichOneof("kind"):
        case "classifier":
            return f"classifier {spec.classifier.model} at {spec.classifier.address}"
        case "language_model":
            return f"language model {spec.language_model.model} at {spec.language_model.address}"
        case _:
            return "rules"


def judge_cost(judge: Judge) -> str:
    """What a judge has used of the day's limits."""
    spec = judge.spec
    if spec.WhichOneof("kind") == "rules":
        return "costs no calls"
    calls = f"{judge.calls_today:,} of {spec.max_calls_per_day:,} calls today"
    if spec.max_tokens_per_day:
        return f"{calls}, {judge.tokens_today:,} of {spec.max_tokens_per_day:,} tokens"
    return f"{calls}, {judge.tokens_today:,} tokens" if judge.tokens_today else calls
