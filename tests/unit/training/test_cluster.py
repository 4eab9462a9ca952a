"""What a Ray cluster has for trainings, and what is said where it cannot be used; none is started."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from services.kit.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError, from_plain
from services.training.adapters.cluster import RayCluster
from services.training.adapters.job import Cluster, Job
from services.training.domain.tasks import TextClassificationTask
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.engine.methods.full import Full
from services.training.worker import cluster_nodes
from services.training.worker.cluster_nodes import has_gpus, places
from services.training.worker.cluster_rank import interface_of, own_folder


def _node(cpus: float, gpus: float = 0, *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


def test_a_process_has_its_cpus_and_a_gpu_where_there_are_some() -> None:
    head, small, large = {"Alive": True, "Resources": {}}, _node(3, 4), _node(16, 2)
    assert [places(node, 2, gpus=False) for node in (head, small, large)] == [0, 1, 8]
    assert [places(node, 2, gpus=True) for node in (head, small, large)] == [0, 1, 2]
    assert places(_node(8, alive=False), 1, gpus=False) == 0
    assert has_gpus([_node(16), large], 2)
    # Its CPUs are too few for a process.
    assert not has_gpus([_node(16), _node(1, 8)], 2)


def _refusal(address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Exception:
    monkeypatch.setattr(sys, "argv", ["cluster_nodes", address, "1", "0"])
    cluster_nodes.main()
    return from_plain(json.loads(capsys.readouterr().out)["error"])


def test_without_ray_the_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setitem(sys.modules, "ray", None)
    error = _refusal("127.0.0.1:1", capsys, monkeypatch)
    assert isinstance(error, FailedPreconditionError)
    assert "Install tidemill[training,bulk], or leave out TIDEMILL_TRAINING_RAY_ADDRESS" in error.message


def test_an_address_without_a_port_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = _refusal("local", capsys, monkeypatch)
    assert isinstance(error, InvalidArgumentError)
    assert "give host:port, such as head:6379" in error.message


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install tidemill[bulk]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UnavailableError, match="Connection refused") as refused:
            RayCluster(Cluster(address)).look()
    assert refused.value.reason == "RAY_UNAVAILABLE"


def test_files_lie_where_no_one_else_can_change_them(tmp_path: Path) -> None:
    folder = own_folder(tmp_path)
    assert own_folder(tmp_path) == folder
    folder.chmod(0o777)
    with pytest.raises(FailedPreconditionError, match="is not a folder that only its user may open"):
        own_folder(tmp_path)
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FailedPreconditionError, match="Remove it"):
        own_folder(tmp_path)


def test_the_loopback_has_an_interface_and_no_one_elses_address_has() -> None:
    assert interface_of("127.0.0.2").startswith("lo")
    with pytest.raises(FailedPreconditionError, match=r"has 192\.0\.2\.1, by which Ray knows it"):
        interface_of("192.0.2.1")


@pytest.mark.parametrize("cluster", [None, Cluster("head:6379", 4)])
def test_a_job_says_where_its_processes_are(tmp_path: Path, cluster: Cluster | None) -> None:
    spec = TrainingSpec(
        "m", "b", "d", "", "0" * 64, TextClassificationTask("label"), Full(),
        Optimization(max_steps=2, batch_size=8), strategy="ddp", processes=2,
    )  # fmt: skip
    job = Job("runs/r", tmp_path, "", tmp_path, tmp_path, tmp_path, spec, 3, tmp_path, tmp_path, cluster=cluster)
    assert Job.read(job.write()) == job
