"""Processes that share a training learn what one process learns from the same batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from services.training.engine.parallel import Parallel
from tests.integration.training_workers.parallel_program import CASES, OPTIONS, RESUMED, SIZES

_ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `parallel_program` stored."""
    folder = tmp_path_factory.mktemp("parallel")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.integration.training_workers.parallel_program", str(folder)],
        cwd=_ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return folder


def _state(folder: Path, step: int, part: str) -> dict[str, Tensor]:
    found = load_file(folder / f"step-{step}.safetensors")
    return {name: value for name, value in found.items() if name.startswith(f"{part}/")}


def _close(found: dict[str, Tensor], expected: dict[str, Tensor], *, rtol: float, atol: float) -> None:
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=rtol, atol=atol), (name, found[name], value)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [(name, strategy) for name, case in CASES.items() for strategy in case.strategies if strategy != "single"],
)
def test_two_processes_learn_what_one_learns(learnt: Path, name: str, strategy: str) -> None:
    one, two = learnt / name / "single", learnt / name / strategy
    losses, tokens = json.loads((one / "losses.json").read_text())
    assert json.loads((two / "losses.json").read_text()) == [pytest.approx(losses, rel=1e-5), tokens]
    # The first moment of AdamW after one step is a tenth of the gradient.
    expected, found = (_state(each, 1, "optimizer") for each in (one, two))
    gradients = {key: value for key, value in expected.items() if key.endswith("/exp_avg")}
    assert gradients
    assert max(float(value.abs().max()) for value in gradients.values()) > 1e-3
    assert found.keys() == expected.keys()
    _close(found, gradients, rtol=1e-4, atol=1e-7)
    # AdamW divides by the size of a gradient, so rounding matters where that is tiny.
    weights, own = (_state(each, OPTIONS.max_steps, "weights") for each in (one, two))
    assert own.keys() == weights.keys()
    _close(own, weights, rtol=1e-3, atol=1e-3)
    # The model itself, with the weights that were not trained.
    model, other = (load_file(each / "model.safetensors") for each in (one, two))
    assert other.keys() == model.keys()
    _close(other, model, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strategy", RESUMED)
def test_resumed_processes_end_like_ones_that_were_never_stopped(learnt: Path, strategy: str) -> None:
    whole, resumed = (learnt / "resume" / strategy / kind for kind in ("whole", "resumed"))
    assert json.loads((resumed / "losses.json").read_text())[0] == json.loads((whole / "losses.json").read_text())[0]
    expected, found = (load_file(each / "model.safetensors") for each in (whole, resumed))
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_dropout_differs_between_the_processes(learnt: Path) -> None:
    # With the same noise in both, their states of random numbers would be the same.
    folder = learnt / "resume" / "ddp" / "whole" / "checkpoints"
    newest = max(folder.glob("step-*"))
    other = load_file(newest / "ranks.safetensors")["1/random_state"]
    assert not torch.equal(other, load_file(newest / "random.safetensors")["random_state"])


def test_shares_are_disjoint_and_complete() -> None:
    batch = list(range(SIZES["hidden_size"] + 1))
    shares = [Parallel("ddp", 3, rank).share(batch) for rank in range(3)]
    assert sorted(at for share in shares for at in share) == batch
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
