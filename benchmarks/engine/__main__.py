"""`make bench-engine`: OpenVINO beside ONNX Runtime on the models of this machine's newest runs.

Every figure is taken of all runtimes in turn, REPEATS times over; a table has medians. Needs `make run`, and a run of
pipelines/reviews.yaml for the encoder. Writes its part of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, peers
from benchmarks.engine.worker import Worker
from benchmarks.report import table, write_section
from services.kit.config import home_dir, state_dir
from services.training.adapters.base_models import BaseModels
from services.training.adapters.job import JOB_FILE, REPORT_FILE, Job
from services.training.adapters.snapshots import read_rows
from services.training.domain.tasks import VARIANTS, GenerationTask, TextClassificationTask, VariantName
from services.training.engine.prompts import prompts_of, training_pairs

_ONNX = ("onnxruntime==1.32.*", "onnxruntime-genai==0.18.*", "onnx>=1.18", "onnx-ir", "onnxscript", "ml-dtypes")
_NEW, _STREAM, _LOSSES, _LABELLED = 24, 48, 24, 400
_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--headlines", type=Path, help="folder of a run that taught a model to write")
    parser.add_argument("--reviews", type=Path, help="folder of a run that taught a classifier")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="of the language model")
    parser.add_argument("--parts", nargs="+", choices=("language", "encoder"), default=["language", "encoder"])
    parser.add_argument("--builds", type=Path, help="folder that keeps what is built, for the next time")
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks.md"))
    options = parser.parse_args()
    onnx = peers.installed("onnxruntime", _ONNX)
    lines = machine.described(("openvino", "openvino-genai", "nncf", "torch", "transformers"))
    lines += [f"- beside {', '.join(_ONNX[:2])}; {options.repeats} repeats, all runtimes in turn, medians", ""]
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as folder:
        scratch = (options.builds or Path(folder)).absolute()
        # Each part is kept as soon as it is measured.
        if "language" in options.parts:
            run = options.headlines or _newest(GenerationTask)
            found = _language(run, scratch, onnx, options.repeats, options.variants)
            write_section(options.report, "language", lines + found)
        if "encoder" in options.parts:
            run = options.reviews or _newest(TextClassificationTask)
            write_section(options.report, "encoder", lines + _encoders(run, scratch, onnx, options.repeats))


def _newest(task: type) -> Path:
    for report in sorted((state_dir() / "artifacts" / "runs").glob(f"*/{REPORT_FILE}"), reverse=True):
        if isinstance(Job.read(report.with_name(JOB_FILE)).spec.task, task):
            return report.parent
    raise SystemExit(f"No run of a {task.__name__} is in {state_dir()}: `make run` first, or name its folder.")


def _language(run: Path, scratch: Path, onnx: Path, repeats: int, variants: Sequence[VariantName]) -> list[str]:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    from services.training.adapters.language_builds import LanguageBuilds

    job = Job.read(run / JOB_FILE)
    task = job.spec.task
    assert isinstance(task, GenerationTask)
    merged = run / "merged"
    tokenizer: Any = AutoTokenizer.from_pretrained(str(merged))
    rows = read_rows(_snapshot(job, run), "holdout", [task.learnt])
    pairs = training_pairs(prompts_of(merged, task), tokenizer, task, rows)
    plain = Tokenizer.from_file(str(merged / "tokenizer.json"))
    intruder = plain.encode(" ".join(" ".join(row["text"] for row in rows).split()[:2000])).ids
    builds = LanguageBuilds(merged)
    for name in variants:
        if not (scratch / "openvino" / name).is_dir():
            builds.build(scratch / "openvino" / name, name)
    del builds
    builder = Worker("benchmarks.engine.onnx_builds", {}, paths=(onnx,), environment={})
    for name in variants:
        if not (scratch / "onnx" / name).is_dir():
            builder.call("language", str(merged), str(scratch / "onnx" / name), name)
    builder.close()

    subjects: dict[str, Worker] = {}
    size: dict[str, float] = {}

    def start(label: str, runtime: str, name: str, environment: dict[str, str]) -> None:
        folder = scratch / runtime / name
        size[label] = sum(path.stat().st_size for path in folder.iterdir() if path.name != "tokenizer.json") / 1e6
        subjects[label] = Worker(
            f"benchmarks.engine.language_{runtime}",
            {"folder": str(folder)},
            paths=(onnx,) if runtime == "onnx" else (),
            environment=environment,
        )

    for name in variants:
        start(f"ONNX Runtime {name}", "onnx", name, {})
        start(f"OpenVINO {name}", "openvino", name, {})
    start("OpenVINO int8, AVX2 only", "openvino", "int8", _AVX2)
    found: dict[str, dict[str, list[float]]] = {label: defaultdict(list) for label in subjects}
    for repeat in range(repeats + 1):
        chosen = [pairs[(8 * repeat + at) % len(pairs)].prompt for at in range(8)]
        for callers in (1, 8):
            for label, subject in subjects.items():
                seconds, first = subject.call("answer", chosen[:callers], _NEW)
                if repeat:
                    found[label][f"rate {callers}"].append(callers * _NEW / seconds)
                    found[label][f"first {callers}"].append(first * 1000)
        for label in [label for label in subjects if "int8" in label] if repeat else []:
            for kind, other in (("alone", []), ("with", intruder)):
                gaps = subjects[label].call("gaps", chosen[0], other, _STREAM)
                found[label][f"gap {kind}"].append(max(gaps) * 1000)
                found[label][f"median gap {kind}"].append(statistics.median(gaps) * 1000)
    for pair in pairs[:_LOSSES]:
        for label, subject in subjects.items():
            found[label]["nats"].append(subject.call("loss", pair.prompt, pair.target))
    tokens = sum(len(pair.target) for pair in pairs[:_LOSSES])
    rows_out = []
    for label, subject in subjects.items():
        middle = {name: statistics.median(values) for name, values in found[label].items()}
        rows_out.append(
            [
                label,
                *(f"{middle[name]:.0f}" for name in ("rate 1", "rate 8", "first 1", "first 8")),
                f"{middle['median gap alone']:.0f} / {middle['gap alone']:.0f}" if "gap alone" in middle else "",
                f"{middle['gap with']:.0f}" if "gap with" in middle else "",
                f"{sum(found[label]['nats']) / tokens:.3f}",
                f"{size[label]:.0f}",
                f"{subject.call('memory'):.0f}",
            ]
        )
        subject.close()

    def ratio(name: str, label: str = "OpenVINO int8") -> float:
        pairs_of = zip(found[label][name], found["ONNX Runtime int8"][name], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs_of)

    return [
        f"### Language model: {job.spec.base_model}, tuned on {job.spec.dataset_name}, prompts of about "
        f"{len(pairs[0].prompt)} tokens, {_NEW} new tokens",
        "",
        *table(
            [
                "build",
                "tokens/s, 1 caller",
                "8 callers",
                "first token ms, 1",
                "last of 8 first tokens",
                "gap of a stream ms, median / longest",
                f"longest gap while {len(intruder)} tokens of prompt arrive",
                f"cross entropy, {_LOSSES} held out",
                "file MB",
                "resident MB",
            ],
            rows_out,
        ),
        "",
        f"int8, OpenVINO over ONNX Runtime, medians of the ratios within a repeat: {ratio('rate 1'):.2f} for one "
        f"caller, {ratio('rate 8'):.2f} for eight; last of eight first tokens {ratio('first 8'):.2f}; longest gap "
        f"while the long prompt arrives {ratio('gap with'):.2f}. With AVX2 only (ONNX Runtime keeps AVX-512): "
        f"{ratio('rate 1', 'OpenVINO int8, AVX2 only'):.2f} and {ratio('rate 8', 'OpenVINO int8, AVX2 only'):.2f}.",
        "",
    ]


def _snapshot(job: Job, run: Path) -> Path:
    """The run's data set; where the run was copied from another machine, beside it."""
    return job.snapshot if job.snapshot.is_dir() else run / "snapshot"


def _encoders(run: Path, scratch: Path, onnx: Path, repeats: int) -> list[str]:
    from transformers import AutoTokenizer

    from benchmarks.engine.encoder_torch import classifier
    from services.training.adapters.encoder_builds import save_fp32, save_int8

    job = Job.read(run / JOB_FILE)
    task = job.spec.task
    assert isinstance(task, TextClassificationTask)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(run / "merged"))
    train, holdout = (read_rows(_snapshot(job, run), part, [task.learnt]) for part in ("train", "holdout"))
    labels = sorted({row[task.label_field] for row in train})

    def tokens(rows: list[dict[str, str]], longest: int) -> list[list[int]]:
        return [
            list(ids) for ids in tokenizer([r["text"] for r in rows], truncation=True, max_length=longest).input_ids
        ]

    # Built again, if need be, where models of this machine lie.
    base = str(BaseModels(home_dir() / "models", home_dir() / "downloads").prepare(job.spec.base_model))
    model = classifier(str(run), base, len(labels))
    folders = {name: scratch / "openvino-encoder" / name for name in ("fp32", "int8")}
    if not folders["int8"].is_dir():
        save_fp32(model, folders["fp32"], vocabulary=model.encoder.config.vocab_size)
        save_int8(folders["fp32"], folders["int8"], tokens(train, task.max_input_tokens))
    if not (scratch / "onnx-encoder" / "int8").is_dir():
        builder = Worker("benchmarks.engine.onnx_builds", {}, paths=(onnx,), environment={})
        builder.call("encoder", str(run), base, len(labels), 128, str(scratch / "onnx-encoder"))
        builder.close()

    source = {"run": str(run), "base": base, "labels": len(labels)}
    made: dict[str, tuple[str, dict[str, Any], dict[str, str], Path]] = {
        "torch fp32": ("torch", source, {}, run / "merged"),
        **{
            f"ONNX Runtime {name}": (
                "onnx",
                {"file": f"{scratch}/onnx-encoder/{name}/model.onnx"},
                {},
                scratch / "onnx-encoder" / name,
            )
            for name in ("fp32", "int8")
        },
        **{f"OpenVINO {name}": ("openvino", {"folder": str(folders[name])}, {}, folders[name]) for name in folders},
        "torch fp32, AVX2 only": ("torch", source, {**_AVX2, "ATEN_CPU_CAPABILITY": "avx2"}, run / "merged"),
        "OpenVINO int8, AVX2 only": ("openvino", {"folder": str(folders["int8"])}, _AVX2, folders["int8"]),
    }
    subjects = {
        label: Worker(
            f"benchmarks.engine.encoder_{runtime}",
            arguments,
            paths=(onnx,) if runtime == "onnx" else (),
            environment=environment,
        )
        for label, (runtime, arguments, environment, _) in made.items()
    }
    flow = [token for text in tokens(train[:600], 10**6) for token in text[1:-1]]
    texts = {
        length: [[text_ids[0], *flow[at * length : at * length + length - 2], text_ids[-1]] for at in range(32)]
        for text_ids in [tokens(train[:1], 16)[0]]
        for length in (32, 128)
    }
    found: dict[str, dict[str, list[float]]] = {label: defaultdict(list) for label in subjects}
    for repeat in range(repeats + 1):
        for length, chosen in texts.items():
            for callers in (1, 8):
                for label, subject in subjects.items():
                    rate = subject.call("rate", chosen, callers)
                    if repeat:
                        found[label][f"{length} {callers}"].append(rate)
    held = tokens(holdout, task.max_input_tokens)[:_LABELLED]
    references = [labels.index(row[task.label_field]) for row in holdout[:_LABELLED]]
    rows_out = []
    for label, subject in subjects.items():
        answers = subject.call("answers", held)
        over = found["torch fp32, AVX2 only" if "AVX2" in label else "torch fp32"]
        rates = []
        for name in ("32 1", "32 8", "128 1", "128 8"):
            times = statistics.median(a / b for a, b in zip(found[label][name], over[name], strict=True))
            rates.append(f"{statistics.median(found[label][name]):.0f} ({times:.1f}×)")
        right = sum(a == b for a, b in zip(answers, references, strict=True)) / len(references)
        files = sum(
            p.stat().st_size for p in made[label][3].iterdir() if p.suffix in (".onnx", ".bin", ".xml", ".safetensors")
        )
        rows_out.append([label, *rates, f"{right:.4f}", f"{files / 1e6:.0f}", f"{subject.call('memory'):.0f}"])
        subject.close()
    return [
        f"### Encoder: {job.spec.base_model}, tuned on {job.spec.dataset_name}; texts a second, one text a "
        "request, one thread a request, in brackets over torch fp32",
        "",
        *table(
            [
                "build",
                "32 tokens, 1 caller",
                "8 callers",
                "128 tokens, 1",
                "8 callers",
                f"accuracy, {len(held)} held out",
                "file MB",
                "resident MB",
            ],
            rows_out,
        ),
        "",
    ]


if __name__ == "__main__":
    main()
