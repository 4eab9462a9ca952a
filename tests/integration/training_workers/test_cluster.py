"""Trainings on a Ray cluster of two nodes learn what one process learns, and outlive a node."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import ray_cluster
from tests.integration.training_workers.cluster_program import LONG, STEPS

pytestmark = [
    *ray_cluster.marks(),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install tidemill[bulk]"
    ),
]


def _ran(folder: Path, kind: str) -> Any:
    """What `cluster_program` found beside a cluster of its own."""
    program = (sys.executable, "-m", "tests.integration.training_workers.cluster_program", folder, kind)
    with ray_cluster.short_folder() as short, ray_cluster.beside_cluster(short, *program) as command:
        _, err = command.communicate()
    assert command.returncode == 0, err
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_nodes_learn_what_one_process_learns(tmp_path: Path, strategy: str) -> None:
    seen = _ran(tmp_path, strategy)
    alone = _losses(tmp_path / "single")
    assert alone[-1] < alone[0]
    weights = load_file(tmp_path / "single" / "run" / "merged" / "model.safetensors")
    folder, view = tmp_path / strategy, seen[strategy]
    assert view["figures"] is not None, view
    assert view["figures"]["processes"] == 2
    assert view["figures"]["final_loss"] == pytest.approx(seen["single"]["figures"]["final_loss"], rel=1e-4)
    assert _losses(folder) == pytest.approx(alone, rel=1e-4)
    own = load_file(folder / "run" / "merged" / "model.safetensors")
    assert own.keys() == weights.keys()
    for name, value in weights.items():
        # AdamW divides by the size of a gradient, so rounding matters where that is tiny.
        assert torch.allclose(own[name], value, rtol=1e-3, atol=1e-3), name
    # Rank 0 is heard, and each node has one process.
    assert view["curve"][-1] == STEPS
    assert _nodes(folder) == [{"127.0.0.1", "127.0.0.2"}]
    assert _nodes(tmp_path / "single") == [], "one process needs no cluster"


def test_a_node_that_dies_is_replaced_from_the_checkpoint(tmp_path: Path) -> None:
    stopped, lost, replaced = _ran(tmp_path, "resumes")
    # A run that is asked to stop keeps the state of its last step.
    assert (stopped["figures"], stopped["failure"], stopped["stopped"]) == (None, None, True), stopped
    (checkpoint,) = stopped["checkpoints"]
    assert 7 <= int(checkpoint.removeprefix("step-")) < LONG
    # One whose node died is to be started again, which is not a failure of its own.
    assert (lost["figures"], lost["failure"], lost["stopped"]) == (None, None, False), lost
    assert "was lost" in lost["ending"]
    assert replaced["figures"] is not None, replaced
    assert replaced["figures"]["steps"] == LONG
    log = (tmp_path / "run" / "worker.log").read_text()
    resumed = [int(step) for step in re.findall(r"resumes from step (\d+)", log)]
    assert len(resumed) == 2
    assert 35 <= resumed[1] < LONG
    assert _nodes(tmp_path)[1:] == [{"127.0.0.1", "127.0.0.2"}, {"127.0.0.1", "127.0.0.3"}]
    # No step is left out or done twice.
    assert len(_losses(tmp_path)) == LONG


def test_what_the_cluster_has_no_room_for_is_refused_and_what_fails_there_fails(tmp_path: Path) -> None:
    found = _ran(tmp_path, "refused")
    machine = found["machine"]
    assert (machine["kind"], machine["cores"], machine["together"]) == ("cpu", 2, 1)
    assert machine["memory_bytes"] > 0
    assert found["large"]["reason"] == "DEVICES_MISSING"
    assert "No node of the Ray cluster has 2 CPUs" in found["large"]["message"]
    # The error of a process is that of the run, and no loss of one.
    diverged = found["diverged"]
    assert diverged["figures"] is None
    assert "lower optimization.learning_rate" in diverged["failure"]


def _losses(folder: Path) -> list[float]:
    found: list[float] = json.loads((folder / "run" / "eval" / "losses.json").read_text())
    return found


def _nodes(folder: Path) -> list[set[str]]:
    """The nodes of each attempt."""
    log = (folder / "run" / "worker.log").read_text()
    return [set(each.split(", ")) for each in re.findall(r"trains on the nodes ([\d., ]+[\d])", log)]
