"""How often advice is right: `make bench-advise`, into docs/benchmarks.md.

Builds of models of other shapes than those that calibrate the machine are measured by the runtime that serves: size,
time, memory. For limits drawn at random, the pick by prediction is compared with the pick by these measurements.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import described
from benchmarks.report import table, write_section
from services.training.adapters.machine import main_memory
from services.training.domain.advice import GOALS, Candidate, Predicted, Wishes, misses, ranked
from services.training.domain.device import HERE, Device, Speed
from services.training.domain.tasks import Architecture, VariantName
from services.training.engine.advising import predict
from services.training.engine.model_shape import Shape
from services.training.worker.__main__ import OFFLINE
from services.training.worker.calibration import LENGTHS, build, calibration_builds, config_of, fitted
from services.training.worker.calibration import measure as calibrated_measure

_DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_SIZES: Mapping[Architecture, Mapping[str, Mapping[str, int]]] = {
    "encoder": {
        "6 x 256": {
            "vocab_size": 16384, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6,
            "num_attention_heads": 4,
        },
        "4 x 512": {
            "vocab_size": 21128, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4,
            "num_attention_heads": 8,
        },
        "3 x 768": {
            "vocab_size": 21128, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 3,
            "num_attention_heads": 12,
        },
    },
    "causal": {
        "8 x 384": {
            "vocab_size": 16384, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8,
            "num_attention_heads": 6,
        },
        "6 x 640": {
            "vocab_size": 16384, "hidden_size": 640, "intermediate_size": 1792, "num_hidden_layers": 6,
            "num_attention_heads": 10,
        },
    },
}  # fmt: skip
_LENGTHS: Mapping[Architecture, Sequence[int]] = {"encoder": (32, 192), "causal": (48, 192)}
_TASKS: Mapping[Architecture, str] = {"encoder": "text_classification", "causal": "generation"}
_ANSWER, _DRAWS = 24, 300
_ROUNDS: Mapping[Architecture, int] = {"encoder": 20, "causal": 6}

Measured = dict[tuple[str, VariantName, int], Predicted]


def measure(architecture: Architecture, scratch: Path) -> tuple[Device, Measured, Measured]:
    """The machine as it is calibrated, and what each build takes, by shape, build and length of the input.

    The builds take turns with those of the calibration, so that other load affects both. The first of the two has the
    95th percentile of the times, the second the median. The loss of quality is left at zero.
    """
    shapes, folders = calibration_builds(architecture, scratch)
    known, ours = list(folders), _LENGTHS[architecture]
    for name, sizes in _SIZES[architecture].items():
        builds = build(architecture, config_of(architecture, sizes), scratch / name.replace(" ", ""))
        folders |= {(name, variant): folder for variant, folder in builds.items()}
    lengths = (*LENGTHS[architecture], *ours)
    times = calibrated_measure(architecture, folders, lengths, _ANSWER, _ROUNDS[architecture])
    calibrating = {key: {length: times[key][length] for length in LENGTHS[architecture]} for key in known}
    found = fitted(architecture, shapes, calibrating)
    speeds = {name: Speed(**values) for name, values in found["speeds"].items()}
    device = Device(HERE, main_memory(), 1, {architecture: speeds}, found["tail"], "measured", measured=True)
    late: Measured = {}
    middle: Measured = {}
    for (name, variant), folder in folders.items():
        if (name, variant) in known:
            continue
        size = sum(path.stat().st_size for path in folder.iterdir())
        for length in ours:
            memory = _memory(architecture, folder, length)
            values = sorted(first + later * (_ANSWER - 1) for first, later in times[name, variant][length])
            p95, p50 = values[math.ceil(0.95 * len(values)) - 1], median(values)
            late[name, variant, length] = Predicted(size, memory, p95, 1000 / p50, 0.0)
            middle[name, variant, length] = Predicted(size, memory, p50, 1000 / p50, 0.0)
    return device, late, middle


def _memory(architecture: Architecture, folder: Path, length: int) -> int:
    """Peak resident bytes of a process that does nothing but serve a build."""
    command = [sys.executable, "-m", "benchmarks.build_memory", architecture, str(folder), str(length), str(_ANSWER)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder} could not be served: {done.stderr[-2000:]}")
    return int(done.stdout.splitlines()[-1])


def compare(
    architecture: Architecture, device: Device, measured: Measured, seed: int, words_of_time: str
) -> tuple[list[list[str]], str]:
    """The largest and the median error of each prediction, and how often the pick was right, as a sentence."""
    wishes = Wishes(_TASKS[architecture], max_target_tokens=_ANSWER, max_quality_loss=1.0)
    shapes = {name: Shape.of_config(config_of(architecture, sizes)) for name, sizes in _SIZES[architecture].items()}
    predicted = {
        (name, build, length): predict(replace(wishes, max_input_tokens=length), device, shapes[name], build)
        for name, build, length in measured
    }
    rows = []
    for field, words in (("size_bytes", "size"), ("memory_bytes", "peak memory"), ("latency_ms", words_of_time)):
        errors = [getattr(predicted[key], field) / getattr(measured[key], field) - 1 for key in measured]
        rows.append([words, f"{median(abs(e) for e in errors):.0%}", f"{min(errors):+.0%} to {max(errors):+.0%}"])
    chance = random.Random(seed)
    same = met = answered = 0
    for _ in range(_DRAWS):
        length, goal = chance.choice(_LENGTHS[architecture]), chance.choice(GOALS)

        def limit(field: str, at: int = length) -> float:
            values = [getattr(value, field) for key, value in measured.items() if key[2] == at]
            # Evenly on a logarithmic scale, from what nothing meets to what all meet.
            return math.exp(chance.uniform(math.log(min(values) * 0.8), math.log(max(values) * 1.2)))

        asked = replace(
            wishes,
            max_input_tokens=length,
            max_size_bytes=round(limit("size_bytes")),
            max_latency_ms=limit("latency_ms"),
            max_memory_bytes=round(limit("memory_bytes")),
        )
        picks = []
        for source in (predicted, measured):
            candidates = [
                Candidate(name, shapes[name].parameters, build, found, misses=misses(asked, device, found))
                for (name, build, at), found in _with_losses(source, predicted).items()
                if at == length
            ]
            picks.append(ranked(goal, candidates)[0])
        ours, right = picks
        # Where nothing fits, saying so is the right answer; which is the nearest is a matter of opinion.
        same += (ours.base_model, ours.build) == (right.base_model, right.build) if right.fits else not ours.fits
        if ours.fits:
            answered += 1
            met += not misses(asked, device, measured[ours.base_model, ours.build, length])
    sentence = (
        f"{_TASKS[architecture]}, {words_of_time}: of {_DRAWS} limits the pick was that of the measured front "
        f"{same} times ({same / _DRAWS:.0%}); of {answered} builds that were said to fit {met} did "
        f"({met / max(1, answered):.0%})."
    )
    return rows, sentence


def _with_losses(found: Measured, predicted: Measured) -> Measured:
    """With the expected loss of quality on both sides: random weights have none to measure."""
    return {key: replace(value, quality_loss=predicted[key].quality_loss) for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a JSON file for what was measured")
    arguments = parser.parse_args()
    os.environ.update(OFFLINE)
    lines, sentences, kept = described(("openvino", "openvino-genai", "nncf", "torch")), [], {}
    rows: list[list[str]] = []
    architectures: tuple[Architecture, ...] = ("encoder", "causal")
    for architecture in architectures:
        with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder:
            device, late, middle = measure(architecture, Path(folder))
        for words, times, tail in (("p95 of an answer", late, device.tail), ("median of an answer", middle, 1.0)):
            found, sentence = compare(architecture, replace(device, tail=tail), times, arguments.seed, words)
            # Size and memory are the same in both.
            rows += [[_TASKS[architecture], *row] for row in (found if times is late else found[-1:])]
            sentences.append(f"- {sentence}")
            print(sentence, flush=True)
        kept[architecture] = _plain(device, late)
    if arguments.keep:
        arguments.keep.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    shown = [
        *lines,
        f"- {sum(map(len, _SIZES.values()))} models with random weights, each in all of its builds, of other shapes "
        "than those of the calibration; inputs of 32 to 192 tokens; limits of size, memory and latency drawn at random",
        "",
        *table(("task", "prediction", "median error", "errors"), rows),
        "",
        *sentences,
    ]
    write_section(_DOCUMENT, "advise", shown)


def _plain(device: Device, measured: Measured) -> dict[str, Any]:
    speeds = {f"{a} {name}": repr(speed) for a, of in device.speeds.items() for name, speed in of.items()}
    return {
        "speeds": speeds,
        "tail": device.tail,
        "measured": {str(key): repr(value) for key, value in measured.items()},
    }


if __name__ == "__main__":
    main()
