"""A Ray cluster as a machine: a process of its own looks at its nodes, for the service itself has nothing of Ray."""

from __future__ import annotations

import json
import subprocess
import sys

from services.kit.errors import UnavailableError, from_plain
from services.training.adapters.job import Cluster
from services.training.domain.machine import Machine

_PROGRAM = "services.training.worker.cluster_nodes"
_PATIENCE_S = 50.0


class RayCluster:
    """Implements `services.training.app.ports.MachineView`."""

    def __init__(self, cluster: Cluster, memory_bytes: int = 0) -> None:
        """`memory_bytes`: what runs may take of each node or its GPU; all of it when zero."""
        self._cluster, self._memory = cluster, memory_bytes

    def look(self) -> Machine:
        """See the port.

        Raises:
            InvalidArgumentError: the setting is not the address of a cluster.
            FailedPreconditionError: Ray is not installed, or a node has another release of Tidemill.
            UnavailableError: the cluster does not answer, or has no node that computes.
        """
        address, cpus = self._cluster.address, self._cluster.cpus
        command = [sys.executable, "-m", _PROGRAM, address, str(cpus), str(self._memory)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            wrong = f"the Ray cluster at {address} did not say within {_PATIENCE_S:.0f} s which nodes it has"
            raise UnavailableError(f"{wrong}.", reason="RAY_UNAVAILABLE") from error
        # Libraries may print, too; the answer is the last line.
        lines = ended.stdout.splitlines()
        if ended.returncode or not lines:
            said = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
            raise UnavailableError(f"Ray at {address} cannot be used: {said}", reason="RAY_UNAVAILABLE")
        answer = json.loads(lines[-1])
        if "error" in answer:
            raise from_plain(answer["error"])
        return Machine(**answer["machine"])
