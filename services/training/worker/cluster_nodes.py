"""What a Ray cluster has for trainings: `python -m services.training.worker.cluster_nodes ADDRESS CPUS MEMORY`.

CPUS are those of a process, MEMORY the bytes that a run may take of a node or its GPU, all when 0. Prints one line of
JSON: the cluster as a machine, or an error. A program of its own, because services import nothing of Ray.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from services.kit.errors import FailedPreconditionError, TidemillError, UnavailableError, as_plain
from services.kit.ray_cluster import connected, last_line
from services.training.adapters.machine import LocalMachine
from services.training.domain.machine import Machine

_INSTALL = "tidemill[training,bulk]"
_NEEDED = ("torch", "transformers", "peft")
_PATIENCE_S = 40.0

Node = Mapping[str, Any]


def joined(address: str, *, log_to_driver: bool = False) -> AbstractContextManager[Any]:
    """Ray, connected to the cluster of trainings; see `services.kit.ray_cluster.connected`."""
    return connected(
        address,
        "TIDEMILL_TRAINING_RAY_ADDRESS",
        install=_INSTALL,
        without="then ddp, fsdp and tp have their processes on this machine",
        log_to_driver=log_to_driver,
    )


def places(node: Node, cpus: int, *, gpus: bool) -> int:
    """How many processes a node has a GPU, if they need one, and CPUs for."""
    resources = node["Resources"] if node["Alive"] else {}
    found = int(resources.get("CPU", 0) // cpus)
    return min(found, int(resources.get("GPU", 0))) if gpus else found


def has_gpus(nodes: Sequence[Node], cpus: int) -> bool:
    """Whether there are GPUs for processes; then each has one."""
    return any(places(node, cpus, gpus=True) for node in nodes)


def described(memory_bytes: int) -> dict[str, Any]:
    """A node, as a task on it sees it."""
    return {
        "release": version("tidemill"),
        "missing": [name for name in _NEEDED if find_spec(name) is None],
        "machine": asdict(LocalMachine(memory_bytes).look()),
    }


def look(ray: Any, cpus: int, memory_bytes: int) -> Machine:
    """The nodes that can train, as one machine.

    Raises:
        FailedPreconditionError: none can; or one of them has another release, or lacks what a training needs.
        UnavailableError: one of them does not answer.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    every = ray.nodes()
    gpus = has_gpus(every, cpus)
    nodes = {node["NodeID"]: node for node in every if places(node, cpus, gpus=gpus)}
    if not nodes:
        raise FailedPreconditionError(
            f"No node of the Ray cluster has {cpus} CPU{'s' if cpus > 1 else ''} for a process of a training. Add one, "
            "or lower TIDEMILL_TRAINING_RAY_CPUS.",
            reason="DEVICES_MISSING",
        )
    task = ray.remote(num_cpus=0)(described)
    asked = {
        key: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False)).remote(memory_bytes)
        for key in nodes
    }
    machines = []
    for key, answer in asked.items():
        machines.append(_checked(ray, nodes[key]["NodeManagerAddress"], answer, gpus=gpus))
    there = [places(node, cpus, gpus=gpus) for node in nodes.values()]
    return Machine(
        "cuda" if gpus else "cpu",
        min(each.memory_bytes for each in machines),
        devices=sum(there) if gpus else 1,
        half=all(each.half for each in machines),
        cores=sum(there),
        together=max(there),
    )


def _checked(ray: Any, address: str, answer: Any, *, gpus: bool) -> Machine:
    """The machine of a node that can train."""
    try:
        found = ray.get(answer, timeout=_PATIENCE_S)
    except ray.exceptions.RayTaskError as error:
        raise _unfit(address, f"cannot run Tidemill: {last_line(error)}") from error
    except ray.exceptions.RayError as error:
        raise UnavailableError(
            f"The node {address} of the Ray cluster does not answer: {last_line(error)}.", reason="RAY_UNAVAILABLE"
        ) from error
    if found["release"] != version("tidemill"):
        raise _unfit(address, f"has release {found['release']} of Tidemill, not {version('tidemill')}")
    if found["missing"]:
        raise _unfit(address, f"has no {', '.join(found['missing'])}")
    machine = Machine(**found["machine"])
    if gpus and machine.kind != "cuda":
        raise _unfit(address, "has GPUs, as Ray says, but its nvidia-smi shows none")
    return machine


def _unfit(address: str, why: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"The node {address} of the Ray cluster {why}. All of its machines need the same {_INSTALL}.",
        reason="CLUSTER_NODE",
        metadata={"node": address},
    )


def main() -> None:
    """See the module."""
    address, cpus, memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    try:
        with joined(address) as ray:
            answer: dict[str, Any] = {"machine": asdict(look(ray, cpus, memory))}
    except TidemillError as error:
        answer = {"error": as_plain(error)}
    print(json.dumps(answer), flush=True)  # noqa: T201 - its answer


if __name__ == "__main__":
    main()
