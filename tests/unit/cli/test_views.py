"""What the command line shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from tidemill.pipeline.v1.cycle_pb2 import Cycle, Stage
from tidemill.telemetry.v1.telemetry_service_pb2 import LogRecord, Span

from gateway.cli.connection import Target
from gateway.cli.views.cycle import PlainReporter, stages_table
from gateway.cli.views.summary import next_steps, summary
from gateway.cli.views.text import shorten
from gateway.cli.views.trace import trace_tree
from gateway.formats import duration, milliseconds, rate, size
from tests.unit.cli.cycles import START, running, sliced, succeeded

TARGET = Target("127.0.0.1:7100", "127.0.0.1:8080", "key", Path("/state/api-key"))


def shown(renderable: RenderableType, width: int = 100) -> list[str]:
    console = Console(width=width, file=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (12.34, "12.3 s"), (84, "1:24"), (3723, "1:02:03"), (-1, "0.0 s")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (138_000_000, "138 MB"), (999_600, "1.0 MB")]
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


def test_small_figures() -> None:
    assert (milliseconds(0.00042), milliseconds(0.0123), milliseconds(1.24)) == ("0.42 ms", "12.3 ms", "1.2 s")
    assert (rate(1130.2), rate(83.14), rate(0.314)) == ("1,130", "83.1", "0.31")
    assert shorten("a  b\nc", 9) == "a b c"
    assert shorten("abcdef", 4) == "abc…"
    assert shorten("房间很干净", 10) == "房间很干净"
    assert shorten("房间很干净，", 10) == "房间很干…"


@pytest.mark.parametrize("width", [80, 100])
def test_running_cycle_is_one_line_a_stage(width: int) -> None:
    lines = shown(stages_table(running(), width, "*", START + 60), width)
    assert len(lines) == 5
    assert all(len(line) <= width for line in lines)
    train = lines[2]
    for part in ("train", "evaluate", "34/60 steps", "loss 2.41", "1:24 left", "52.0 s"):
        assert part in train
    assert ("0.31/s" in train) == (width == 100)
    assert "reused" in lines[1]


@pytest.mark.parametrize("width", [80, 100])
def test_summary_says_everything(width: int) -> None:
    text = "\n".join(lines := shown(summary(succeeded(), width), width))
    assert all(len(line) <= width for line in lines)
    for part in (
        "2,225 in → 2,059 cleaned",
        "166 rejected",
        "159  exact_duplicate",
        "ROUGE-L on 200 held-out records",
        "[0.203, 0.243]",
        "+0.094 = +73%",
        "Brown sees slower growth",
        "171 MB",
        "83.1",
        "41 ms",
        "● published",
        "refused",
        "int4: loses 26.0 %",
        "clean: unchanged",
    ):
        assert part in text
    assert text.count("tuned   ") >= 5


def test_summary_of_what_failed_early() -> None:
    cycle = Cycle(name="pipelines/x/cycles/y", state=Cycle.STATE_FAILED)
    cycle.spec.name = "x"
    cycle.failure.message = "The folder /nothing does not exist."
    text = "\n".join(shown(summary(cycle, 80), 80))
    assert "The folder /nothing does not exist." in text
    assert "Records" not in text


def test_an_uncertain_gain_is_called_so() -> None:
    cycle = succeeded()
    cycle.report.difference.ci_low = -0.01
    assert "not certain" in "\n".join(shown(summary(cycle, 100)))


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("champion", [True, False])
def test_slices_are_a_table(width: int, champion: bool) -> None:
    lines = shown(summary(sliced(succeeded(), champion=champion), width), width)
    assert max(map(len, lines)) <= width
    rows = {name: next(line for line in lines if f"source: {name}" in line).split() for name in ("news", "mail", "12")}
    assert rows["12"][1:] == ["12", "more", "values", "15", "too", "few"]
    assert rows["news"][1:5] == ["news", "100", "0.100", "0.100" if champion else "0.200"]
    assert ("0.002" in rows["mail"]) == champion
    assert "-0.200" in rows["mail"]
    assert any(f"gain over the {'champion' if champion else 'base'}" in line for line in lines)


def test_next_steps_fit_the_task() -> None:
    cycle = succeeded()
    steps = dict(next_steps(cycle, TARGET, "tidemill", "python"))
    text = "\n".join(steps.values())
    for part in (
        "tidemill generate headlines",
        "curl -N http://127.0.0.1:8080/v1/chat",
        "import openai",
        "GenerateRequest",
    ):
        assert part in text
    assert "tidemill trace abab" in text
    assert "/state/api-key" in text
    cycle.spec.training.text_classification.label_field = "label"
    text = "\n".join(dict(next_steps(cycle, TARGET, "tidemill", "python")).values())
    assert "tidemill predict headlines" in text
    assert "PredictRequest" in text
    assert "curl" not in text


def test_plain_lines_report_each_change_once() -> None:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture, PlainReporter(console) as report:
        report.update(running())
        report.update(running())
        later = running()
        later.stages[2].state = Stage.STATE_SUCCEEDED
        later.stages[2].summary = "ROUGE-L 0.129 → 0.223"
        report.update(later)
    lines = capture.get().splitlines()
    assert [line.split("]")[0] for line in lines] == ["[collect", "[clean", "[train", "[train"]
    assert "34/60 steps" in lines[2]
    assert lines[3].endswith("ROUGE-L 0.129 → 0.223")


def span(name: str, parent: str, start_ms: int, service: str, **more: object) -> Span:
    found = Span(span_id=name, parent_span_id=parent, name=name, service=service, kind="server", **more)  # type: ignore[arg-type]
    found.start_time.FromMilliseconds(START * 1000 + start_ms)
    found.duration.FromMilliseconds(10)
    return found


def test_trace_is_a_tree_in_the_order_of_time() -> None:
    spans = [
        span("late", "root", 5, "inference", error=True, status_message="no model"),
        span("root", "someone-elses", 0, "gateway"),
        span("early", "root", 1, "inference"),
        span("deep", "early", 2, "triton"),
    ]
    log = LogRecord(level="error", service="inference", message="it broke", span_id="late")
    stray = LogRecord(level="info", service="ingest", message="outside", span_id="unknown")
    lines = shown(trace_tree("ab" * 16, spans, [log, stray]))
    assert "4 spans" in lines[0]
    assert "1 failed" in lines[0]
    names = [
        next(n for n in ("root", "early", "deep", "late", "it broke", "outside") if n in line) for line in lines[1:]
    ]
    assert names == ["root", "early", "deep", "late", "it broke", "outside"]
    assert "no model" in lines[4]
    depth = {name: line.index(name) for name, line in zip(names, lines[1:], strict=True)}
    assert depth["root"] < depth["early"] < depth["deep"]


def test_a_very_deep_trace_is_shown() -> None:
    spans = [span(f"s{index}", f"s{index - 1}", index, "x") for index in range(300)]
    assert len(shown(trace_tree("cd" * 16, spans, []), 2000)) == 301
