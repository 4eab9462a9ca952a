"""One process of a training on a node of a Ray cluster: an actor that services.training.worker.cluster starts.

It loads data set and base model from files that it is given, trains beside the others, and keeps what the run has to
know until that asks: steps, checkpoints and messages of rank 0.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import socket
import stat
import struct
import tempfile
import threading
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.kit.errors import FailedPreconditionError, explained
from services.kit.storage.temporary import temporary_files
from services.training.adapters.job import Job
from services.training.engine.loop import Cancelled, Checkpoint, StepProgress
from services.training.engine.parallel import Parallel
from services.training.worker.__main__ import OFFLINE
from services.training.worker.phases import train_share
from services.training.worker.ranks import PATIENCE, Training, failure_of, meeting

if TYPE_CHECKING:
    from torch import Tensor

SNAPSHOT, BASE = "snapshot", "base"
_ADDRESS_OF_INTERFACE = 0x8915  # SIOCGIFADDR, netdevice(7)
_EVENT_S = 1.0


@dataclass(frozen=True, slots=True)
class Message:
    """A line of the log."""

    level: int
    logger: str
    text: str


Event = StepProgress | Checkpoint | Message


@dataclass(frozen=True, slots=True)
class File:
    """A file of the run: its path below the folder of the process, and references to its bytes, in pieces."""

    path: str
    pieces: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: with a training, cancelled, or with a failure as `failure.json` has it.

    `certain`: the failure is its own. Otherwise the end of another process may have caused it.
    """

    training: Training | None = None
    cancelled: bool = False
    failure: dict[str, Any] | None = None
    certain: bool = True


class Rank:
    """The actor; several of its methods run at a time, each in a thread."""

    def __init__(self, job: Job, rank: int, threads: int) -> None:
        os.environ.update(OFFLINE)
        self._job, self._threads = job, threads
        self._parallel = Parallel(job.spec.strategy, job.spec.processes, rank)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stop, self._stored = threading.Event(), threading.Event()
        self._store: Any = None
        self._files = ExitStack()
        if not rank:
            ours = logging.getLogger("services")
            ours.setLevel(logging.INFO)
            ours.addHandler(_Forwarding(self._events))

    def place(self) -> tuple[str, str]:
        """Id and address of the node."""
        import ray

        context = ray.get_runtime_context()
        return str(context.get_node_id()), str(ray.util.get_node_ip_address())

    def stage(self, files: Sequence[File]) -> str:
        """Writes files of the run; returns their folder, which processes on this node may read until this one ends."""
        import ray

        # What a killed process has left there is removed by the next one.
        self._files.enter_context(temporary_files(own_folder(Path(tempfile.gettempdir())), "rank"))
        folder = Path(tempfile.mkdtemp())
        for each in files:
            path = folder / each.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for piece in each.pieces:
                    file.write(ray.get(piece))
        return str(folder)

    def open_store(self, address: str) -> int:
        """Opens the store by which the processes meet; returns its port."""
        from torch import distributed

        made: Any = distributed
        self._store = made.TCPStore(
            address, 0, self._parallel.processes, is_master=True, wait_for_workers=False, timeout=PATIENCE
        )
        return int(self._store.port)

    def train(self, folder: str, own_address: str, address: str, port: int) -> Ended:
        """Trains with the others.

        Args:
            folder: of the staged files.
            own_address: of this node.
            address: of the node with the store.
            port: of the store.
        """
        try:
            return Ended(training=self._train(Path(folder), own_address, address, port))
        except Cancelled:
            return Ended(cancelled=True)
        except Exception as error:
            traceback.print_exc()
            # Broken connections to another process are RuntimeErrors of torch.
            certain = explained(error) is not None or not isinstance(error, RuntimeError)
            return Ended(failure=failure_of(error), certain=certain)

    def events(self) -> list[Event]:
        """What has happened since the last call; waits a moment for the first."""
        found: list[Event] = []
        with suppress(queue.Empty):
            found.append(self._events.get(timeout=_EVENT_S))
            while True:
                found.append(self._events.get_nowait())
        return found

    def stored(self) -> None:
        """The last checkpoint is stored."""
        self._stored.set()

    def stop(self) -> None:
        """Asks the training to stop after the current step."""
        self._stop.set()

    def leave(self) -> None:
        """Removes the files of this process."""
        self._files.close()

    def _train(self, folder: Path, own_address: str, address: str, port: int) -> Training:
        import torch
        from torch import distributed

        from services.training.worker.sequence import share_of

        torch.set_num_threads(self._threads)
        interface = interface_of(own_address)
        # Unless the node itself says which ones are to be used.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
        spec = replace(
            self._job.spec, base_model=str(folder / BASE), dataset_uri=(folder / SNAPSHOT).absolute().as_uri()
        )
        job = replace(
            self._job, folder=folder, snapshot=folder / SNAPSHOT, models_dir=folder, downloads_dir=folder, spec=spec
        )
        # Ray shows each process its own GPU only.
        material, trainable = share_of(job, 0)
        made: Any = distributed
        store = self._store or made.TCPStore(address, port, self._parallel.processes, is_master=False, timeout=PATIENCE)
        with meeting(store, self._parallel, material.device.type):
            return train_share(
                job,
                trainable,
                material.device,
                self._parallel,
                on_step=self._events.put,
                on_checkpoint=self._hand_over,
                should_stop=self._stop.is_set,
            )

    def _hand_over(self, checkpoint: Checkpoint) -> None:
        """Waits until the run has stored it, as a training on its own machine does."""
        self._stored.clear()
        self._events.put(_in_main_memory(checkpoint))
        self._stored.wait()


class _Forwarding(logging.Handler):
    """Keeps messages for the run's log."""

    def __init__(self, events: queue.SimpleQueue[Event]) -> None:
        super().__init__(logging.INFO)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        self._events.put(Message(record.levelno, record.name, self.format(record)))


def own_folder(below: Path) -> Path:
    """A folder of this user for files of trainings, in one that others may write to.

    Raises:
        FailedPreconditionError: someone else has made it, or may open it.
    """
    folder = below / f"tidemill-ranks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise FailedPreconditionError(
            f"{folder} on {socket.gethostname()} is not a folder that only its user may open. Remove it.",
            reason="CLUSTER_NODE",
        )
    return folder


def interface_of(address: str) -> str:
    """The network interface with an IPv4 address.

    Raises:
        FailedPreconditionError: none has it.
    """
    names = [name for _, name in socket.if_nameindex()]
    if address.startswith("127."):
        return "lo" if "lo" in names else names[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name in names:
            # Not each has an IPv4 address.
            with suppress(OSError):
                found = fcntl.ioctl(probe, _ADDRESS_OF_INTERFACE, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    raise FailedPreconditionError(
        f"No network interface of {socket.gethostname()} has {address}, by which Ray knows it. Start its node with "
        "--node-ip-address, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME there.",
        reason="CLUSTER_NODE",
    )


def _in_main_memory(checkpoint: Checkpoint) -> Checkpoint:
    def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.cpu() for name, tensor in tensors.items()}

    return replace(
        checkpoint,
        weights=moved(checkpoint.weights),
        optimizer=moved(checkpoint.optimizer),
        accelerator=moved(checkpoint.accelerator),
        ranks=moved(checkpoint.ranks),
    )
