"""`tidemill advise`: what it prints, and what it refuses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tidemill.training.v1 import run_pb2
from tidemill.training.v1 import training_service_pb2 as pb
from typer.testing import CliRunner

from gateway.cli import advise_command
from gateway.cli.amounts import byte_count, milliseconds
from gateway.cli.main import create_cli
from gateway.cli.pipeline_file import load_pipeline
from services.kit.errors import FieldViolation, InvalidArgumentError, NotFoundError, TidemillError
from services.training.adapters.base_models import BaseModels
from services.training.domain.advice import Wishes
from services.training.domain.device import DEVICES
from services.training.domain.machine import Machine
from services.training.engine.advising import advise
from services.training.entrypoints.mapping import advice_to

_PIPELINES = Path(__file__).parents[3] / "pipelines"


def _advice(*, fits: bool = True) -> pb.AdviseTrainingResponse:
    exceeded = [
        pb.ExceededLimit(limit="max_size_bytes", wanted=20e6, predicted=24.1e6),
        pb.ExceededLimit(limit="max_latency_ms", wanted=20, predicted=41.2),
        pb.ExceededLimit(limit="max_quality_loss", wanted=0.02, predicted=0.0811),
    ]
    return pb.AdviseTrainingResponse(
        device="edge",
        candidates=[
            pb.AdviceCandidate(
                base_model="bge-small-zh-v1.5", build="int8", size_bytes=24_100_000, latency_p95_ms=18,
                quality_loss=0.005, measured_runs=2, exceeded=[] if fits else exceeded,
            )
        ],
        fits=fits,
        reason="the smallest file of the 2 that fit",
        spec=run_pb2.TrainingSpec(
            base_model="bge-small-zh-v1.5",
            model_name="advised",
            text_classification=run_pb2.TextClassificationTask(label_field="label", max_input_tokens=64),
            lora=run_pb2.LoraMethod(r=8, alpha=16),
            optimization=run_pb2.Optimization(
                epochs=2, batch_size=16, learning_rate=0.001, warmup_ratio=0.1, precision=run_pb2.PRECISION_AUTO,
                gradient_accumulation=1, checkpoint_every=20,
            ),
            compression=run_pb2.Compression(variants=["int8"]),
        ),
        max_quality_loss=0.02,
        preference="smallest",
        replicas=3,
        answer_cache_bytes=1000,
    )  # fmt: skip


def test_its_lines_make_a_pipeline_file(tmp_path: Path) -> None:
    pipeline = yaml.safe_load((_PIPELINES / "reviews.yaml").read_text(encoding="utf-8"))
    lines = yaml.safe_load(advise_command.lines(_advice()))
    pipeline["training"] = {"model_name": "reviews", **lines["training"]}
    pipeline["gate"] |= lines["gate"]
    pipeline["rollout"] |= lines["rollout"]
    file = tmp_path / "advised.yaml"
    file.write_text(yaml.safe_dump(pipeline), encoding="utf-8")
    spec = load_pipeline(file).spec
    assert list(spec.training.compression.variants) == ["int8"]
    assert spec.training.optimization.precision == run_pb2.PRECISION_AUTO
    assert (spec.training.lora.r, spec.gate.max_quality_loss, spec.rollout.preference) == (8, 0.02, 2)


def test_full_fine_tuning_is_a_line_too() -> None:
    found = _advice()
    found.spec.full.SetInParent()
    assert "  full: {}" in advise_command.lines(found).splitlines()


def test_a_row_says_what_is_predicted_or_why_it_does_not_fit() -> None:
    console = Console(width=200)
    with console.capture() as shown:
        console.print(advise_command.candidates(_advice()))
        console.print(advise_command.candidates(_advice(fits=False)))
    text = shown.get()
    for words in ("24.1 MB", "18 ms", "-0.5% (2 runs)", "yes", "no: size > 20.0 MB, p95 > 20 ms, loss > 2.0%"):
        assert words in text, text


def test_the_verdict_names_the_pick_or_what_to_relax() -> None:
    assert advise_command.verdict(_advice()) == (
        "Pick: int8 of bge-small-zh-v1.5, the smallest file of the 2 that fit."
    )
    assert advise_command.verdict(_advice(fits=False)) == (
        "Nothing fits. The nearest is int8 of bge-small-zh-v1.5; it would fit with --max-size 25MB and "
        "--max-latency 42ms and --max-quality-loss 0.082."
    )


def test_many_callers_are_served_by_cache_and_replicas() -> None:
    words = advise_command.serving(_advice(), 500)
    assert "TIDEMILL_ANSWER_CACHE_BYTES=1000" in words
    assert "3 such devices" in words


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("base_models[1]", "--base"),
        ("device", "--device"),
        ("max_size_bytes", "--max-size"),
        ("max_latency_ms", "--max-latency"),
        ("max_quality_loss", "--max-quality-loss"),
        ("callers", "--concurrency"),
    ],
)
def test_an_error_names_the_option(field: str, option: str) -> None:
    error: TidemillError = NotFoundError("x", violations=[FieldViolation(field, "is wrong")])
    assert advise_command._by_option(error).message == f"{option}: is wrong"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--max-size", "50"), "--max-size: '50' has no unit; write it as 80GB or 64MiB."),
        (("--max-size", "much"), "--max-size: 'much' is not an amount of memory"),
        (("--max-size", "0MB"), "--max-size: '0MB' is not an amount of memory above zero"),
        (("--max-memory", "1XB"), "--max-memory: '1XB' is not an amount of memory"),
        (("--max-latency", "20"), "--max-latency: '20' has no unit; write it as 20ms or 1.5s."),
        (("--max-latency", "-20ms"), "--max-latency: '-20ms' is not a time, which must be above zero"),
        (("--max-latency", "0ms"), "--max-latency: '0ms' is not a time above zero"),
    ],
)
def test_wrong_amounts_are_refused_before_anyone_is_asked(options: tuple[str, str], words: str) -> None:
    result = CliRunner().invoke(create_cli("advise"), ["advise", "--task", "generation", *options])
    assert isinstance(result.exception, InvalidArgumentError)
    assert words in str(result.exception)


@pytest.mark.parametrize(("text", "count"), [("", 0), ("80GB", 80 * 10**9), ("1.5 GiB", 1610612736), ("1000", 1000)])
def test_amounts_of_memory(text: str, count: int) -> None:
    assert byte_count(text, "--memory", plain=True) == count


@pytest.mark.parametrize(("text", "ms"), [("", 0), ("20ms", 20), ("1.5s", 1500), ("1.5 S", 1500)])
def test_times_of_an_answer(text: str, ms: float) -> None:
    assert milliseconds(text, "--max-latency") == ms


def _advised(command: str) -> tuple[pb.AdviseTrainingResponse, dict[str, str]]:
    """The advice to a command of README.md, by the rules that the service asks."""
    words = shlex.split(command)[2:]
    options = dict(zip(words[::2], words[1::2], strict=True))
    wishes = Wishes(
        options["--task"],
        options["--device"],
        max_size_bytes=byte_count(options["--max-size"], "--max-size"),
        max_latency_ms=milliseconds(options["--max-latency"], "--max-latency"),
    )
    models = BaseModels(Path("unused"), Path("unused"))
    bases = {name: models.config(name) for name in models.names() if "type_vocab_size" in models.config(name)}
    return advice_to(advise(wishes, DEVICES[wishes.device], bases, Machine("cpu", 8 * 10**9), {})), options


def test_what_the_readme_shows_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (_PIPELINES.parent / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```console\n(\$ tidemill advise .*?)```", readme, re.DOTALL)
    examples = [each for each in block.split("$ ") if each]
    assert examples
    for example in examples:
        command, _, wanted = example.partition("\n")
        found, options = _advised(command)
        advise_command.show(found, options["--task"], 1)
        printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        shown = [line.rstrip() for line in wanted.splitlines()]
        # An example that is not shown to its end has an ellipsis there.
        if "…" in shown:
            shown = shown[: shown.index("…")]
            printed = printed[: len(shown)]
        assert shown == printed
