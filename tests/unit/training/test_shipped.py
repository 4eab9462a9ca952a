"""The shipped pipelines and trainings: each method is shown with each task, and each header is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli.main import create_cli
from gateway.cli.pipeline_file import load_pipeline
from services.training.adapters.base_models import BaseModels
from services.training.domain.machine import Machine
from services.training.domain.tasks import TASKS
from services.training.engine.methods import method_type, names
from services.training.engine.run_plan import plan_run
from tests.shipped import PIPELINES, ROOT, TRAINED, TRAININGS, spec_of

_COMMAND = re.compile(r"\btidemill ((?:[a-z]+ )+)(\S+\.yaml)(?: --training (\S+\.yaml))?")


def header(path: Path) -> str:
    """The comments with which a file begins, in one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("# ") for line in lines[: next(n for n, x in enumerate(lines) if x[:1] != "#")])


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run_by(path: Path) -> tuple[str, str | None]:
    """The pipeline file and the training file of the `tidemill run` in a header."""
    found = [(file, training) for verb, file, training in _COMMAND.findall(header(path)) if verb == "run "]
    assert found, "its header does not say how to run it: `Run: tidemill run …`"
    return found[0][0], found[0][1] or None


def test_each_method_is_shown_with_each_of_its_tasks() -> None:
    shown = {(spec.method.kind, spec.task.kind) for spec in map(spec_of, TRAINED)}
    able = {(method, task) for method in names() for task in getattr(method_type(method), "TASKS", TASKS)}
    missing = ", ".join(f"{method} × {task}" for method, task in sorted(able - shown))
    assert not missing, f"no file of pipelines/ or examples/ trains {missing}: add one to pipelines/training/"


@pytest.mark.parametrize("path", TRAINED, ids=name_of)
def test_its_base_model_can_learn_it_and_its_memory_can_be_planned(path: Path, tmp_path: Path) -> None:
    spec = spec_of(path)
    (tmp_path / spec.base_model).mkdir()
    models = BaseModels(tmp_path / "models", tmp_path)
    spec.check_base(models.find(spec.base_model))
    plan = plan_run(spec, models.config(spec.base_model), Machine("cpu", 8 * 10**9))
    assert plan.nearest == "", "it does not fit into the 8 GB that the README asks for"


@pytest.mark.parametrize("path", [*PIPELINES, *TRAININGS], ids=name_of)
def test_its_header_says_how_to_run_it(path: Path) -> None:
    said = header(path)
    assert name_of(path) in said or "`make " in said
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(re.findall(r"\bmake (\w+)", said)) <= set(targets)
    for verb, file, training in _COMMAND.findall(said):
        assert (ROOT / file).is_file(), f"tidemill {verb}{file}"
        assert not training or (ROOT / training) == path, f"{training} is another file"


@pytest.mark.parametrize("path", [path for path in TRAINED if path.is_relative_to(ROOT / "pipelines")], ids=name_of)
def test_what_its_header_says_is_without_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, training = run_by(path)
    chosen = [] if training is None else ["--training", training]
    monkeypatch.chdir(ROOT)
    found = CliRunner().invoke(create_cli(), ["run", pipeline, *chosen, "--check", "--address", "127.0.0.1:1"])
    assert found.exit_code == 0, found.output
    spec = load_pipeline(ROOT / pipeline, None if training is None else ROOT / training).spec
    assert spec.rollout.model == f"models/{spec.training.model_name}"
    learnt = {column for column, _ in spec_of(path).learnt}
    assert learnt <= {*spec.dataset.required_attributes}, "a training sees required_attributes only"
