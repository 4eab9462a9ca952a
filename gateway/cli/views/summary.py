"""The results of a cycle: records, quality before and after, builds, and what to try next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from tidemill.common.v1.failure_pb2 import Metric
from tidemill.pipeline.v1.cycle_pb2 import Cycle
from tidemill.training.v1.run_pb2 import Comparison, Report, Slice, Variant

from gateway.cli.connection import Target
from gateway.cli.output import plain_table
from gateway.cli.views.text import shorten
from gateway.formats import SLICE_LEVEL, drops, duration, interval, metric_name, rate, size, slice_name

_WIDE = 96
_EXAMPLES = 5
_BAR = 24
_TITLES = {
    Cycle.STATE_SUCCEEDED: ("green", "published"),
    Cycle.STATE_REJECTED: ("yellow", "no build passed the gate; the previous version keeps serving"),
    Cycle.STATE_UNCHANGED: ("cyan", "nothing new to learn since the last cycle"),
    Cycle.STATE_FAILED: ("red", "failed"),
    Cycle.STATE_CANCELLED: ("yellow", "cancelled"),
    Cycle.STATE_RUNNING: ("cyan", "still running"),
}


def summary(cycle: Cycle, width: int) -> RenderableType:
    """The whole summary.

    Args:
        cycle: a cycle, usually an ended one; sections without content are left out.
        width: columns of the terminal, at least 80.
    """
    return Group(*_sections(cycle, width))


def _sections(cycle: Cycle, width: int) -> Iterator[RenderableType]:
    color, word = _TITLES.get(cycle.state, ("cyan", ""))
    seconds = (cycle.update_time.ToNanoseconds() - cycle.create_time.ToNanoseconds()) / 1e9
    yield Text()
    yield Rule(Text.assemble((cycle.spec.name, "bold"), " · ", (word, color), f" · {duration(seconds)}"), style=color)
    if cycle.reasons:
        yield _block("Started by its triggers", Text(" ".join(cycle.reasons)))
    if cycle.HasField("failure"):
        yield _block("Failure", Text(cycle.failure.message, "red"))
    if cycle.HasField("dataset_version"):
        yield _block("Records", _records(cycle))
    if cycle.HasField("report"):
        yield _block("Quality", _quality(cycle.report))
        if cycle.report.HasField("corrections"):
            yield _block("Corrections", _learnt(cycle.report.corrections))
        if cycle.report.slices:
            yield _block("Slices", slice_table(cycle.report, width))
        if cycle.report.examples:
            yield _block("Before and after", _examples(cycle.report, width))
        if cycle.report.variants:
            yield _block("Builds", _builds(cycle, width))
    if reused := [stage.name for stage in cycle.stages if stage.reused]:
        yield _block("Reused", Text(f"{', '.join(reused)}: unchanged since an earlier cycle, so not done again."))


def _block(title: str, content: RenderableType) -> RenderableType:
    return Group(Text(), Text(title, "bold cyan"), Padding(content, (0, 0, 0, 2)))


def _records(cycle: Cycle) -> RenderableType:
    version = cycle.dataset_version
    rejected = sum(version.rejected_by_reason.values())
    line = Text.assemble(
        (f"{version.records_in:,}", "bold"),
        " in → ",
        (f"{version.train_count + version.holdout_count:,}", "bold green"),
        f" cleaned ({version.train_count:,} for training, {version.holdout_count:,} held out) · ",
        (f"{rejected:,}", "bold yellow"),
        " rejected",
    )
    reasons = drops(version)
    if not reasons:
        return line
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column()
    for reason, count in reasons:
        table.add_row(f"{count:,}", Text(reason, "bright_black"))
    return Group(line, table)


def _quality(report: Report) -> RenderableType:
    tuned = report.tuned
    lines: list[RenderableType] = [
        Text(f"{metric_name(tuned.name)} on {tuned.sample_size:,} held-out records, 95 % interval")
    ]
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "left", "left"):
        table.add_column(justify=justify)
    top = max(report.base.value, report.champion.value, tuned.value, 1e-9)
    for name, metric in (("base", report.base), ("champion", report.champion), ("tuned", tuned)):
        if metric.sample_size:
            table.add_row(name, Text(f"{metric.value:.3f}", "bold"), interval(metric), _bar(metric, top, name))
    lines.append(table)
    if report.HasField("difference") and report.HasField("base"):
        difference = report.difference
        share = f" = {difference.value / report.base.value:+.0%}" if report.base.value > 0 else ""
        color = "green" if difference.ci_low > 0 else "yellow" if difference.ci_high > 0 else "red"
        certain = (
            "" if difference.ci_low > 0 or difference.ci_high < 0 else " · not certain: the interval includes zero"
        )
        lines.append(
            Text.assemble(
                "gain  ",
                (f"{difference.value:+.3f}{share}", f"bold {color}"),
                f"  {interval(difference, signed=True)}{certain}",
            )
        )
    if report.HasField("over_champion"):
        over = report.over_champion
        words = f"over the champion {report.champion_run}  {over.value:+.3f}  {interval(over, signed=True)}"
        lines.append(Text(words))
    return Group(*lines)


def _learnt(found: Comparison) -> RenderableType:
    """Whether the model learnt what people said."""
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    for name, metric in (("base", found.base), ("champion", found.champion), ("tuned", found.tuned)):
        if metric.sample_size:
            table.add_row(name, Text(f"{metric.value:.3f}", "bold"), interval(metric))
    for name, gain in (("over the champion", found.over_champion), ("over the base", found.over_base)):
        if gain.sample_size:
            table.add_row(name, Text(f"{gain.value:+.3f}", "bold"), interval(gain, signed=True))
    count = found.tuned.sample_size
    return Group(Text(f"{metric_name(found.tuned.name)} on {count:,} that were held back, 95 % interval"), table)


def slice_table(report: Report, width: int) -> RenderableType:
    """The models on parts of the hold-out."""
    measured = [each.comparison for each in report.slices if each.HasField("comparison")]
    others = [name for name in ("base", "champion") if any(found.HasField(name) for found in measured)]
    table = plain_table()
    table.add_column("slice", no_wrap=True)
    for name in ("records", *others, "tuned"):
        table.add_column(name, justify="right")
    if width >= _WIDE:
        table.add_column("95 % interval")
    words = f"{metric_name(report.tuned.name)} on parts of the held-out records"
    if others:
        words += f", and the gain over the {others[-1]}"
        table.add_column("gain", justify="right")
    if "champion" in others:
        words += "; p: how likely chance brings such a loss on any of them"
        table.add_column("p", justify="right")
    for each in report.slices:
        table.add_row(*_slice_row(each, others, width))
    return Group(Text(words), table)


def _slice_row(found: Slice, others: Sequence[str], width: int) -> Iterator[RenderableType]:
    yield Text(shorten(slice_name(found), width // 3))
    yield f"{found.examples:,}"
    if not found.HasField("comparison"):
        yield Text("too few", "bright_black")
        return
    models = found.comparison
    yield from (f"{getattr(models, name).value:.3f}" for name in others)
    yield Text(f"{models.tuned.value:.3f}", "bold")
    if width >= _WIDE:
        yield interval(models.tuned)
    worse = found.HasField("p_worse") and found.p_worse <= SLICE_LEVEL
    if others:
        yield Text(f"{getattr(models, f'over_{others[-1]}').value:+.3f}", "red" if worse else "")
    if found.HasField("p_worse"):
        yield Text(f"{found.p_worse:.3f}", "bold red" if worse else "bright_black")


def _bar(metric: Metric, top: float, name: str) -> Text:
    return Text("█" * max(1, round(_BAR * metric.value / top)), "green" if name == "tuned" else "bright_black")


def _examples(report: Report, width: int) -> RenderableType:
    space = width - 14
    parts: list[RenderableType] = []
    for number, example in enumerate(report.examples[:_EXAMPLES]):
        table = Table.grid(padding=(0, 2))
        table.add_column(width=8, style="bright_black")
        table.add_column(no_wrap=True)
        table.add_row("text", Text(shorten(example.input, space), "bright_black"))
        table.add_row("wanted", Text(shorten(example.reference, space)))
        if example.base:
            table.add_row("base", Text(shorten(example.base, space), "yellow"))
        table.add_row("tuned", Text(shorten(example.tuned, space), "bold green"))
        parts.extend((Text(), table) if number else (table,))
    return Group(*parts)


def _builds(cycle: Cycle, width: int) -> RenderableType:
    generation = any(variant.tokens_per_second for variant in cycle.report.variants)
    metric = metric_name(cycle.report.variants[0].quality.name)
    wide = width >= _WIDE
    table = plain_table()
    table.add_column("build")
    table.add_column("size", justify="right")
    table.add_column("tokens/s" if generation else "texts/s", justify="right")
    table.add_column("first token" if generation else "latency", justify="right")
    table.add_column(metric, justify="right")
    if wide:
        table.add_column("95 % interval")
    table.add_column("loss", justify="right")
    table.add_column("verdict")
    verdicts = {verdict.precision: verdict for verdict in cycle.verdicts}
    for variant in cycle.report.variants:
        verdict = verdicts.get(variant.precision)
        speed, wait = _speed(variant)
        word = (
            Text("not judged", "bright_black")
            if verdict is None
            else Text("● published" if cycle.model_version else "● chosen", "bold green")
            if verdict.chosen
            else Text("passed", "green")
            if verdict.passed
            else Text("refused", "red")
        )
        table.add_row(
            Text(variant.precision, "bold" if verdict and verdict.chosen else ""),
            size(variant.size_bytes),
            speed,
            wait,
            f"{variant.quality.value:.3f}",
            *((interval(variant.quality),) if wide else ()),
            f"{verdict.quality_loss:+.1%}" if verdict else "",
            word,
        )
    whys = [Text.assemble((f"{verdict.precision}: ", "bold"), verdict.why) for verdict in cycle.verdicts if verdict.why]
    return Group(table, *whys)


def _speed(variant: Variant) -> tuple[str, str]:
    if variant.tokens_per_second:
        return rate(variant.tokens_per_second), f"{variant.time_to_first_token_ms:,.0f} ms"
    if variant.examples_per_second:
        return rate(variant.examples_per_second), f"{variant.latency_p50_ms:.1f} ms"
    return "", ""


def next_steps(cycle: Cycle, target: Target, program: str, python: str) -> list[tuple[str, str]]:
    """What to try next: a description and a command that can be pasted.

    Args:
        cycle: a cycle that published a build.
        target: the mesh.
        program: the command `tidemill`, as the user can call it.
        python: a Python that can import the stubs, as the user can call it.
    """
    model = cycle.spec.rollout.model.removeprefix("models/")
    classifies = cycle.spec.training.WhichOneof("task") != "generation"
    text = "房间很干净，服务也好" if classifies else "Shares rose sharply after the bank raised its forecast."
    method, field = ("Predict", f"texts=['{text}']") if classifies else ("Generate", f"text='{text}'")
    stub = (
        f'{python} -c "import grpc; from tidemill.inference.v1 import inference_service_pb2 as m, '
        f"inference_service_pb2_grpc as s; print(s.InferenceServiceStub(grpc.insecure_channel('{target.address}'))."
        f"{method}(m.{method}Request(model='models/{model}', {field}), "
        f"metadata=[('authorization', 'Bearer ' + open('{target.key_file}').read().strip())]))\""
    )
    body = f'{{"model":"{model}","stream":true,"messages":[{{"role":"user","content":"{text}"}}]}}'
    curl = (
        f'curl -N {target.http_url}/v1/chat/completions -H "Authorization: Bearer $(cat {target.key_file})" '
        f"-d '{body}'"
    )
    openai = (
        f"{python} -c \"import openai; c = openai.OpenAI(base_url='{target.http_url}/v1', "
        f"api_key=open('{target.key_file}').read().strip()); print(c.chat.completions.create(model='{model}', "
        f"messages=[{{'role': 'user', 'content': '{text}'}}]).choices[0].message.content)\""
    )
    steps = [("on the command line", f'{program} {"predict" if classifies else "generate"} {model} "{text}"')]
    if not classifies:
        steps += [("over HTTP, with OpenAI's API", curl), ("with the openai package", openai)]
    steps += [
        ("over gRPC, with the Python stubs", stub),
        ("rate an answer (its id is shown with it)", f"{program} feedback ANSWER good"),
        ("search the logs", f'{program} logs "service:inference"'),
    ]
    if cycle.trace_id:
        steps.append(("see the cycle's trace through the mesh", f"{program} trace {cycle.trace_id}"))
    return [*steps, ("see every part", f"{program} status"), ("stop everything", f"{program} down")]


def print_next_steps(console: Console, steps: list[tuple[str, str]]) -> None:
    """Prints the commands unwrapped, so that they can be copied."""
    console.print()
    console.print(Text("Try next", "bold cyan"))
    for words, command in steps:
        console.print(Text(f"  # {words}", "bright_black"))
        console.print(Text(f"  {command}"), soft_wrap=True)
