"""Trains beside a Ray cluster of two nodes: `… cluster_program FOLDER KIND`; what happened is in files there.

It starts runs as the service does. The nodes share no folder with them but that of temporary files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil

from services.kit.errors import TidemillError
from services.training.adapters.cluster import RayCluster
from services.training.adapters.job import Cluster
from services.training.adapters.launching import ForkServer, Launcher
from services.training.app.ports import WorkerView
from services.training.domain.strategies import Strategy
from services.training.domain.training_spec import TrainingSpec
from tests.integration.training.test_strategies import Here, reviews_spec
from tests.ray_cluster import ADDRESS, OTHER_NODE
from tests.waiting import wait_until

STEPS, LONG = 12, 400
_NEW_NODE = "127.0.0.3"
_CLUSTER = Cluster(ADDRESS)
# Each process on a node loads the libraries for itself.
_PATIENCE_S = 240.0


def _spec(folder: Path, strategy: Strategy, steps: int) -> TrainingSpec:
    folder.mkdir(parents=True)
    spec = reviews_spec(folder, "ddp", steps)
    # Without noise, for that differs between processes.
    config = folder / "bert" / "config.json"
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config.write_text(json.dumps({**json.loads(config.read_text()), **quiet}))
    return replace(spec, strategy=strategy, processes=1 if strategy == "single" else 2)


def _seen(view: WorkerView) -> dict[str, Any]:
    return {
        "figures": None if view.report is None else dict(view.report.figures),
        "failure": None if view.failure is None else view.failure.message,
        "ending": view.ending,
        "stopped": view.stopped,
        "curve": [point.step for point in view.loss_curve],
    }


def _learns(folder: Path, launcher: Launcher, shared: Strategy) -> dict[str, Any]:
    found: dict[str, Any] = {}
    strategies: tuple[Strategy, ...] = ("single", shared)
    for strategy in strategies:
        here = Here(folder / strategy, _spec(folder / strategy, strategy, STEPS), launcher, _CLUSTER)
        here.start()
        found[strategy] = _seen(here.ended(_PATIENCE_S))
    return found


def _resumes(folder: Path, launcher: Launcher) -> list[dict[str, Any]]:
    here = Here(folder, _spec(folder / "node", "ddp", LONG), launcher, _CLUSTER)
    found = []
    # A run that is asked to stop keeps the state of its last step.
    here.start()
    here.stepped(7, _PATIENCE_S)
    here.workers.stop(here.run)
    view = _seen(here.ended(_PATIENCE_S))
    found.append({**view, "checkpoints": sorted(path.name for path in (here.folder / "checkpoints").iterdir())})
    # A node dies.
    here.start()
    here.stepped(40, _PATIENCE_S)
    raylet = _raylet(OTHER_NODE)
    for each in (raylet, *raylet.children(recursive=True)):
        each.kill()
    found.append(_seen(here.ended(_PATIENCE_S)))
    # The next attempt waits for a node that replaces it.
    here.start()
    wait_until(lambda: "waits for 2 places" in here.log, "a run that waits", _PATIENCE_S)
    _add_node()
    found.append(_seen(here.ended(_PATIENCE_S)))
    return found


def _diverges(folder: Path, launcher: Launcher) -> dict[str, Any]:
    spec = _spec(folder / "diverges", "ddp", LONG)
    here = Here(folder, replace(spec, optimization=replace(spec.optimization, learning_rate=1e30)), launcher, _CLUSTER)
    here.start()
    return _seen(here.ended(_PATIENCE_S))


def _raylet(address: str) -> psutil.Process:
    return next(
        each
        for each in psutil.process_iter()
        if each.name() == "raylet" and f"--node_ip_address={address}" in each.cmdline()
    )


def _add_node() -> None:
    node = ["--num-cpus=1", "--object-store-memory=100000000", f"--node-ip-address={_NEW_NODE}", f"--address={ADDRESS}"]
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats", *node],
        check=True,
        stdout=sys.stderr,
    )


def _refused(cluster: Cluster) -> dict[str, str]:
    try:
        found = RayCluster(cluster).look()
    except TidemillError as error:
        return {"reason": error.reason, "message": error.message}
    return {"found": repr(found)}


def main() -> None:
    """See the module."""
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    launcher = ForkServer()
    try:
        if kind == "refused":
            found: Any = {
                "machine": asdict(RayCluster(_CLUSTER).look()),
                "large": _refused(Cluster(ADDRESS, 2)),
                "diverged": _diverges(folder, launcher),
            }
        elif kind == "resumes":
            found = _resumes(folder, launcher)
        else:
            found = _learns(folder, launcher, "ddp" if kind == "ddp" else "fsdp")
    finally:
        launcher.close()
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
