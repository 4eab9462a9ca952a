"""What the gateway adds to a call, on this machine: `make bench-serving`.

Every door of the gateway, with key check, limits, tracing and the log of answers on, beside the same request made to
Triton directly (over gRPC, the only door that Triton has in a mesh). All in turn, several times; figures are medians of
the repeats, and ratios are taken within a repeat. Given another checkout, its gateway is measured in the same run.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.engine.worker import Worker
from benchmarks.report import table, write_section
from benchmarks.serving import litellm, models
from benchmarks.serving.mesh import Gateway, Plane, free_port, running_plane
from benchmarks.serving.models import CLASSIFIER, ENCODER, TEXT, WRITER
from services.serving.domain.names import server_model

_INFER, _STREAM = "/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/ModelStreamInfer"
_PREDICT = "/tidemill.inference.v1.InferenceService/Predict"
_CALLERS = 16
_PROMPTS, _ASKED = 10_000, 400
# What the cache counts for two labels.
_KEPT_BYTES = 464


@dataclass(frozen=True)
class Row:
    """One way to ask, and what it is compared with."""

    name: str
    target: Mapping[str, Any]
    beside: str
    """Name of the row of the same request made directly; its own where it is that."""
    rate: float
    cpu_s: Callable[[], float]
    """Processor seconds of who answers, gateway or Triton, so far."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--beside", type=Path, help="another checkout, whose gateway is measured as well")
    parser.add_argument("--parts", nargs="+", choices=tuple(_PARTS), default=list(_PARTS))
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks.md"))
    options = parser.parse_args()
    lines = machine.described(("grpcio", "uvicorn", "fastapi", "uvloop", "tritonclient"))
    lines += [f"- {options.repeats} repeats of {options.seconds:g} s, everything in turn, medians", ""]
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder, running_plane(Path(folder)) as plane:
        for model, digest in models.make(plane.artifacts).items():
            plane.publish(model, digest)
        for part in options.parts:
            # Each part is kept as soon as it is measured.
            write_section(options.report, f"serving {part}", lines + _PARTS[part](plane, options))


def _rows(label: str, gateway: Gateway) -> list[Row]:
    http: dict[str, Any] = {"kind": "http", "address": gateway.http, "key": gateway.key}
    rpc: dict[str, Any] = {"kind": "unary", "address": gateway.grpc, "key": gateway.key}
    infer, predict = models.infer(CLASSIFIER, [TEXT]), models.predict(CLASSIFIER, [TEXT])
    prediction, chat = models.predict_json(CLASSIFIER, [TEXT]), models.chat_json(WRITER, TEXT, 1)
    v2 = f"/v2/models/{CLASSIFIER}/infer"
    found = [
        ("V2 over gRPC", {**rpc, "path": _INFER, "bodies": [infer]}, "classify", 200),
        ("Predict over gRPC", {**rpc, "path": _PREDICT, "bodies": [predict]}, "classify", 200),
        ("V2 over HTTP", {**http, "path": v2, "bodies": [models.infer_json([TEXT])]}, "classify", 200),
        ("/v1/predict", {**http, "path": "/v1/predict", "bodies": [prediction]}, "classify", 200),
        ("/v1/chat/completions", {**http, "path": "/v1/chat/completions", "bodies": [chat]}, "write", 100),
    ]
    return [Row(f"{label}{name}", target, beside, rate, gateway.cpu_s) for name, target, beside, rate in found]


def _doors(plane: Plane, options: argparse.Namespace) -> list[str]:
    triton: dict[str, Any] = {"address": plane.stack.triton_grpc}
    # Each was published once, so its first version is what Triton has.
    infer = models.infer(server_model(CLASSIFIER, 1), [TEXT])
    stream = models.stream(server_model(WRITER, 1), TEXT, 1)
    classify = {**triton, "kind": "unary", "path": _INFER, "bodies": [infer]}
    write = {**triton, "kind": "stream", "path": _STREAM, "bodies": [stream]}
    with ExitStack() as stack:
        rows = [
            Row("classify", classify, "classify", 200, plane.triton_cpu_s),
            Row("write", write, "write", 100, plane.triton_cpu_s),
        ]
        rows += _rows("", stack.enter_context(plane.gateway("now")))
        rows += _rows("2 processes: ", stack.enter_context(plane.gateway("two", processes=2)))
        if options.beside is not None:
            rows += _rows("before: ", stack.enter_context(plane.gateway("before", code=options.beside.absolute())))
        found = _measured(rows, options.repeats, options.seconds)
    return _door_table(rows, found)


def _measured(rows: Sequence[Row], repeats: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    callers = Worker("benchmarks.serving.callers", {}, paths=(), environment={})
    found: dict[str, dict[str, list[float]]] = {row.name: defaultdict(list) for row in rows}
    for repeat in range(repeats + 1):
        for row in rows:
            # The first round is for caches and compilers.
            took = sorted(callers.call("at_rate", row.target, row.rate, seconds if repeat else 1.0))
            before = row.cpu_s()
            rate = callers.call("saturated", row.target, _CALLERS, seconds if repeat else 1.0)
            cpu_ms = (row.cpu_s() - before) / (rate * seconds) * 1000
            if repeat:
                kept = found[row.name]
                kept["p50"].append(took[len(took) // 2] * 1000)
                kept["p99"].append(took[int(len(took) * 0.99)] * 1000)
                kept["rate"].append(rate)
                kept["cpu"].append(cpu_ms)
    callers.close()
    return found


def _door_table(rows: Sequence[Row], found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    lines = []
    for row in rows:
        own, other = found[row.name], found[row.beside]
        is_direct = row.name == row.beside
        name = f"Triton directly, {row.name}" if is_direct else row.name

        def added(what: str, own: Any = own, other: Any = other) -> str:
            return f"{statistics.median(a - b for a, b in zip(own[what], other[what], strict=True)):+.2f}"

        lines.append(
            [
                name,
                f"{row.rate:g}",
                *(
                    f"{statistics.median(own[what]):.2f}" + ("" if is_direct else f" ({added(what)})")
                    for what in ("p50", "p99")
                ),
                f"{statistics.median(own['rate']):.0f}",
                f"{statistics.median(own['cpu']):.2f}",
            ]
        )
    head = ["request", "at a rate of", "p50 ms (added)", "p99 ms (added)", "most requests/s", "processor ms a request"]
    return [
        "At a rate, and then 16 callers at once. The processor time is that of the gateway, or of Triton where it is "
        "asked directly. The classifier looks up words, the writer is a model of two layers that writes one token.",
        "",
        *table(head, lines),
        "",
    ]


def _cache(plane: Plane, options: argparse.Namespace) -> list[str]:
    """With a cache and without: only new texts, one text, and Zipf's law over many."""
    room = int(0.3 * _PROMPTS * _KEPT_BYTES)
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in ("new", "one", "zipf")}
    weights = [1 / rank for rank in range(1, _PROMPTS + 1)]
    chance = random.Random(7)
    callers = Worker("benchmarks.serving.callers", {}, paths=(), environment={})
    with (
        plane.gateway("without") as without,
        plane.gateway("with", {"TIDEMILL_ANSWER_CACHE_BYTES": str(room)}) as cached,
    ):

        def rate(gateway: Gateway, numbers: Sequence[int]) -> float:
            texts = [f"{number} {' '.join([TEXT] * 5)}" for number in numbers]
            target = {
                "kind": "http",
                "address": gateway.http,
                "key": gateway.key,
                "path": "/v1/predict",
                "bodies": [models.predict_json(ENCODER, [text]) for text in texts],
            }
            return float(callers.call("all_of", target, 8, len(numbers)))

        # As a cache that has run for a while.
        rate(cached, chance.choices(range(_PROMPTS), weights, k=_PROMPTS))
        for repeat in range(options.repeats):
            ranked = chance.choices(range(_PROMPTS), weights, k=_ASKED)
            new = [_PROMPTS * (repeat + 2) + at for at in range(_ASKED)]
            for name, numbers in (("zipf", ranked), ("one", [ranked[0]] * _ASKED), ("new", new)):
                found[name]["without"].append(rate(without, numbers))
                found[name]["with"].append(rate(cached, numbers))
    callers.close()
    lines = []
    for name, words in (
        ("one", "one text again and again"),
        ("zipf", f"Zipf(1.0) over {_PROMPTS:,} texts, room for 30 % of them"),
        ("new", "only new texts"),
    ):
        pairs = list(zip(found[name]["with"], found[name]["without"], strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        lines.append(
            [words, *(f"{statistics.median(found[name][what]):.0f}" for what in ("without", "with")), f"{ratio:.2f}"]
        )
    return [
        "`POST /v1/predict` with one text of about 32 tokens, an encoder of the size of the reviews example (fp32), 8 "
        f"callers, {_ASKED} requests a measurement, one gateway process.",
        "",
        *table(["texts", "requests/s without", "with the cache", "ratio"], lines),
        "",
    ]


def _beside_litellm(plane: Plane, options: argparse.Namespace) -> list[str]:
    """One chat completion through either proxy, in one process each, before a mock that answers at once."""
    http, rpc = free_port(), free_port()
    mock = subprocess.Popen([sys.executable, "-m", "benchmarks.serving.mocks", str(http), str(rpc)])
    callers = Worker("benchmarks.serving.callers", {}, paths=(), environment={})
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    try:
        with (
            plane.gateway("mocked", {"TIDEMILL_TRITON_GRPC": f"127.0.0.1:{rpc}"}) as gateway,
            litellm.running(plane.folder, http) as (proxy, _),
        ):
            chat = {"kind": "http", "path": "/v1/chat/completions"}
            ours, theirs = ([models.chat_json(model, TEXT, 16)] for model in (WRITER, "mock"))
            stream = {"kind": "stream", "path": _STREAM, "bodies": [models.stream(WRITER, TEXT, 16)]}
            targets: dict[str, dict[str, Any]] = {
                "the mock over HTTP": {**chat, "address": f"127.0.0.1:{http}", "key": "none", "bodies": theirs},
                "the mock over gRPC": {**stream, "address": f"127.0.0.1:{rpc}"},
                "LiteLLM": {**chat, "address": proxy, "key": litellm.KEY, "bodies": theirs},
                "Tidemill": {**chat, "address": gateway.http, "key": gateway.key, "bodies": ours},
            }
            for repeat in range(options.repeats + 1):
                for name, target in targets.items():
                    took = sorted(callers.call("at_rate", target, 20, options.seconds))
                    rate = callers.call("saturated", target, 8, options.seconds)
                    if repeat:
                        found[name]["p50"].append(took[len(took) // 2] * 1000)
                        found[name]["rate"].append(rate)
    finally:
        callers.close()
        mock.terminate()
        mock.wait()
    direct = {"LiteLLM": "the mock over HTTP", "Tidemill": "the mock over gRPC"}
    added = {
        name: [a - b for a, b in zip(found[name]["p50"], found[beside]["p50"], strict=True)]
        for name, beside in direct.items()
    }
    lines = [
        [
            name,
            f"{statistics.median(kept['p50']):.2f}"
            + (f" ({statistics.median(added[name]):+.2f})" if name in added else ""),
            f"{statistics.median(kept['rate']):.0f}",
        ]
        for name, kept in found.items()
    ]
    rates = statistics.median(a / b for a, b in zip(found["Tidemill"]["rate"], found["LiteLLM"]["rate"], strict=True))
    share = statistics.median(a / b for a, b in zip(added["Tidemill"], added["LiteLLM"], strict=True))
    return [
        f"Beside {litellm.PACKAGE}, one process each: p50 of a chat completion at 20 requests/s, and the most "
        "requests/s of 8 callers.",
        "",
        *table(["who answers", "p50 ms (added)", "most requests/s"], lines),
        "",
        f"Tidemill over LiteLLM: {rates:.1f} times the requests/s, {share:.2f} of the added p50.",
        "",
    ]


_PARTS: Mapping[str, Callable[[Plane, argparse.Namespace], list[str]]] = {
    "doors": _doors,
    "cache": _cache,
    "litellm": _beside_litellm,
}


if __name__ == "__main__":
    main()
