"""`tidemill advise`: which recipe and build suit a device and its limits, before anything is trained."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table
from tidemill.training.v1.training_service_pb2 import (
    AdviceCandidate,
    AdviseTrainingRequest,
    AdviseTrainingResponse,
    ExceededLimit,
)

from gateway.cli.amounts import byte_count, milliseconds
from gateway.cli.connection import connect
from gateway.cli.output import (
    EXIT_REJECTED,
    AddressOption,
    JsonOption,
    as_json,
    plain_table,
    print_json,
    print_whole,
    stderr,
    stdout,
)
from services.kit.errors import FieldViolation, InvalidArgumentError, TidemillError

_PATIENCE_S = 600.0
_OPTIONS = {
    "base_models": "--base",
    "callers": "--concurrency",
    "max_size_bytes": "--max-size",
    "max_latency_ms": "--max-latency",
    "max_memory_bytes": "--max-memory",
}
"""Options that are not named as their field."""
_LEFT_OUT = ("model_name", "dataset", "evaluation")


def advise(
    task: Annotated[str, typer.Option(help="A task of `training`, for example text_classification.")],
    device: Annotated[str, typer.Option(help="edge, mobile or server (assumed), or here (measured).")] = "here",
    goal: Annotated[
        str,
        typer.Option(
            help="balanced, accuracy, real-time, offline, concurrency or small; what suits the device when left out.",
            show_default=False,
        ),
    ] = "",
    max_size: Annotated[str, typer.Option(help="Of the build's folder, such as 50MB.", show_default=False)] = "",
    max_latency: Annotated[
        str, typer.Option(help="Of a whole answer to the longest input, 95th percentile: 20ms.", show_default=False)
    ] = "",
    max_memory: Annotated[str, typer.Option(help="Of the process that serves; the device's.", show_default=False)] = "",
    max_quality_loss: Annotated[
        float | None, typer.Option(help="Relative to the tuned model; 0.02, for writers 0.05.", show_default=False)
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Callers at the same time.")] = 1,
    base: Annotated[
        list[str] | None, typer.Option(help="Base model to choose from; may be repeated.", show_default="all prepared")
    ] = None,
    max_input_tokens: Annotated[int, typer.Option(min=8, help="Longest input.")] = 128,
    max_target_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of a generation.")] = 32,
    address: AddressOption = None,
    json_wanted: JsonOption = False,
) -> None:
    """Picks base model, method and build for a device and its limits, and shows what is predicted."""
    request = AdviseTrainingRequest(
        task=task,
        device=device,
        goal=goal.replace("-", "_"),
        base_models=base or (),
        max_input_tokens=max_input_tokens,
        max_target_tokens=max_target_tokens,
        max_size_bytes=byte_count(max_size, "--max-size"),
        max_latency_ms=milliseconds(max_latency, "--max-latency"),
        max_memory_bytes=byte_count(max_memory, "--max-memory"),
        max_quality_loss=max_quality_loss,
        callers=concurrency,
    )
    with connect(address) as connection:
        if device == "here":
            stderr().print("The first advice about this machine measures it: a minute or two.", style="bright_black")
        try:
            with connection.errors():
                found = connection.training.AdviseTraining(request, metadata=connection.metadata, timeout=_PATIENCE_S)
        except TidemillError as error:
            raise _by_option(error) from error
    if json_wanted:
        print_json(as_json(found))
    else:
        show(found, task, concurrency)
    if not found.fits:
        raise typer.Exit(EXIT_REJECTED)


def show(found: AdviseTrainingResponse, task: str, callers: int) -> None:
    """Prints the advice."""
    out = stdout()
    goal = found.goal.replace("_", "-")
    out.print(f"{task} on {found.device}, for {goal}; its speed is {found.device_source}", soft_wrap=True)
    print_whole(candidates(found))
    out.print(verdict(found), soft_wrap=True)
    for note in found.notes:
        out.print(f"{note}.", soft_wrap=True)
    if found.answer_cache_bytes:
        out.print(serving(found, callers), soft_wrap=True)
    out.print(f"\nFor the pipeline file:\n\n{lines(found)}", soft_wrap=True, end="")


def candidates(found: AdviseTrainingResponse) -> Table:
    """A row for each candidate, best first."""
    table = plain_table()
    rate = "tokens/s" if found.spec.HasField("generation") else "texts/s"
    for name in ("base model", "build", "size", "memory", "p95", rate, "quality", "fits"):
        table.add_column(name, justify="left" if name in ("base model", "build", "fits") else "right")
    for each in found.candidates:
        source = f" ({each.measured_runs} run{'s' if each.measured_runs > 1 else ''})" if each.measured_runs else ""
        table.add_row(
            each.base_model,
            each.build,
            _size(each.size_bytes),
            _size(each.memory_bytes),
            _time(each.latency_p95_ms),
            f"{each.per_second:,.0f}",
            f"{-each.quality_loss or 0:.1%}{source}",
            "yes" if not each.exceeded else "no: " + ", ".join(_exceeded(limit) for limit in each.exceeded),
        )
    return table


def verdict(found: AdviseTrainingResponse) -> str:
    """The pick with its reason, or what to relax."""
    pick: AdviceCandidate = found.candidates[0]
    name = f"{pick.build} of {pick.base_model}"
    if found.fits:
        return f"Pick: {name}, {found.reason}."
    relaxed = " and ".join(_relaxed(limit) for limit in pick.exceeded)
    return f"Nothing fits. The nearest is {name}; it would fit with {relaxed}."


def serving(found: AdviseTrainingResponse, callers: int) -> str:
    """How several callers are served."""
    cache = f"TIDEMILL_ANSWER_CACHE_BYTES={found.answer_cache_bytes} keeps answers that are the same each time"
    if found.replicas == 1:
        return f"Serving {callers} callers: {cache}; one device is enough."
    return (
        f"Serving {callers} callers: {cache}; without it {found.replicas} such devices side by side keep the latency, "
        "each with a mesh of its own behind a load balancer."
    )


def lines(found: AdviseTrainingResponse) -> str:
    """The lines of a pipeline file that follow; the columns of the task are to be replaced."""
    training: dict[str, Any] = {name: value for name, value in as_json(found.spec).items() if name not in _LEFT_OUT}
    optimization = training["optimization"]
    optimization["precision"] = optimization["precision"].removeprefix("PRECISION_").lower()
    for usual in ("checkpoint_every", "gradient_accumulation"):
        optimization.pop(usual, None)
    order = (
        "base_model",
        found.spec.WhichOneof("task"),
        found.spec.WhichOneof("method"),
        "optimization",
        "compression",
    )
    value = {
        "training": {name: training[name] for name in order if name},
        "gate": {"max_quality_loss": found.max_quality_loss},
        "rollout": {"preference": found.preference},
    }
    text: str = yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=110)
    return text


def _exceeded(limit: ExceededLimit) -> str:
    words = _SHOWN[limit.limit]
    return f"{words[0]} > {words[1](limit.wanted)}"


def _relaxed(limit: ExceededLimit) -> str:
    name, found = _option(limit.limit), limit.predicted
    if limit.limit == "max_latency_ms":
        return f"{name} {math.ceil(found)}ms"
    if limit.limit == "max_quality_loss":
        return f"{name} {math.ceil(found * 1000) / 1000:g}"
    return f"{name} {math.ceil(found / 1e6)}MB"


def _option(field: str) -> str:
    name = field.partition("[")[0]
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}")


def _by_option(error: TidemillError) -> TidemillError:
    """A service's error with the options that it is about."""
    if not error.violations:
        return error
    found = [FieldViolation(_option(each.field), each.description) for each in error.violations]
    text = "; ".join(f"{each.field}: {each.description}" for each in found)
    return InvalidArgumentError(text, reason=error.reason, metadata=error.metadata, violations=found)


def _size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _time(ms: float) -> str:
    return f"{ms / 1000:,.1f} s" if ms >= 1000 else f"{ms:,.0f} ms"


_SHOWN: dict[str, tuple[str, Any]] = {
    "max_size_bytes": ("size", _size),
    "max_memory_bytes": ("memory", _size),
    "max_latency_ms": ("p95", _time),
    "max_quality_loss": ("loss", lambda loss: f"{loss:.1%}"),
}
