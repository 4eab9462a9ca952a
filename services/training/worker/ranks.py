"""The processes that share a training with the run's own process, which is rank 0: started, watched and ended here.

Rank 0 does everything that is not a training step, and alone has the lock of the run, writes its files and is seen by
the service. The other ranks are forked from it before it has threads, wait until it trains, train beside it, and end:

- When rank 0 ends, however it ends, the kernel closes their sockets to it, and they end at once.
- When one of them is killed, rank 0 ends the others and itself without a result, as if it had been killed: the service
  starts the run again, which resumes from its last checkpoint.
- When one of them fails, its error is that of the run.

They meet by a file in a folder of the run that only its user can open, and talk over the loopback interface.

The processes of a run that has a cluster are there, all of them: services.training.worker.cluster.
"""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from services.kit.errors import FailedPreconditionError, explained
from services.kit.ids import new_id
from services.training.adapters.job import (
    EXIT_CANCELLED,
    EXIT_FAILED,
    EXIT_RANK_LOST,
    FAILURE_FILE,
    Job,
    write_json,
)
from services.training.domain.training_spec import Precision
from services.training.engine.allocation import peak_memory
from services.training.engine.loop import Cancelled, Checkpoint, Outcome, StepProgress, train, usable_precision
from services.training.engine.parallel import Parallel
from services.training.engine.tasks import Objective

if TYPE_CHECKING:
    import torch
    from torch import nn

logger = logging.getLogger(__name__)
_FOLDER = "ranks-"
_MESSAGE_BYTES = 65_536
_MAX_MESSAGE = 4_096
# Between the end of one process and the ends that it causes.
_GRACE_S = 0.5
# How long rank 0 waits, after an error of its own, for the end of another rank that caused it.
_SETTLE_S = 5.0
_END_S = 60.0
PATIENCE = timedelta(hours=1)
"""How long a process of a training waits for another."""
_IN_ORDER = (0, EXIT_CANCELLED)


class ClusterLostError(Exception):
    """A process of the training on a cluster is gone, or the cluster; another attempt may succeed."""


@dataclass(frozen=True, slots=True)
class Training:
    """A training that is over, as rank 0 saw it; memory is the most that its process has had, in bytes."""

    outcome: Outcome
    precision: Precision
    memory_before: int
    memory_peak: int


class Ranks:
    """What rank 0 has of the others; of a run with one process, or with a cluster, nothing."""

    def __init__(self, job: Job, work: Callable[[Job, Parallel], None]) -> None:
        """Forks the other ranks, so this process must have no threads but those of libraries that know forks.

        Args:
            job: the run.
            work: what each of them does with its share of the training.
        """
        self._job, self._work = job, work
        self._before_exit: Callable[[], None] = lambda: None
        self._children: dict[int, tuple[int, socket.socket]] = {}
        self._trouble, self._ended = threading.Event(), threading.Event()
        self._closing = False
        self._watcher: threading.Thread | None = None
        # How those ended whose end was collected; before that, their process ids are theirs.
        self._codes: dict[int, int] = {}
        self._lock = threading.Lock()
        for stale in job.folder.glob(f"{_FOLDER}*"):
            shutil.rmtree(stale, ignore_errors=True)
        self._folder = job.folder / f"{_FOLDER}{new_id()}"
        if self.processes == 1 or job.cluster is not None:
            return
        self._folder.mkdir(mode=0o700)
        sys.stdout.flush()
        sys.stderr.flush()
        for rank in range(1, self.processes):
            self._fork(rank)

    @property
    def processes(self) -> int:
        """All of them, rank 0 included."""
        return self._job.spec.processes

    def watch(self, before_exit: Callable[[], None]) -> Self:
        """Watches the others from now on; `before_exit` is called when this process ends because one of them did."""
        self._before_exit = before_exit
        if self._children:
            self._watcher = threading.Thread(target=self._watch, name="ranks", daemon=True)
            self._watcher.start()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the others, if they have not ended."""
        with self._lock:
            self._closing = True
            self._kill()
        if self._watcher is not None:
            self._watcher.join(_END_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def train(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        device: torch.device,
        resume: Checkpoint | None,
        on_step: Callable[[StepProgress], None],
        on_checkpoint: Callable[[Checkpoint], object],
        should_stop: Callable[[], bool],
    ) -> Training:
        """Trains `model` by all processes, see `services.training.engine.loop.train`.

        Raises:
            Cancelled: `should_stop` returned true.
            FloatingPointError: the loss is not finite.
            ClusterLostError: a process on the cluster is gone, or the cluster.
        """
        if self._job.cluster is not None:
            from services.training.worker.cluster import train_on_cluster

            return train_on_cluster(
                self._job,
                self._job.cluster,
                model,
                resume=resume,
                on_step=on_step,
                on_checkpoint=on_checkpoint,
                should_stop=should_stop,
            )
        return trained(
            self._job,
            model,
            objective,
            self.training(device.type),
            device=device,
            resume=resume,
            on_step=on_step,
            on_checkpoint=on_checkpoint,
            should_stop=should_stop,
        )

    @contextmanager
    def training(self, device: str) -> Iterator[Parallel]:
        """Around the training: the others begin, and when it is over they have ended.

        Args:
            device: the type of the device, `cpu` or `cuda`.
        """
        if not self._children:
            yield Parallel()
            return
        import torch

        parallel = Parallel(self._job.spec.strategy, self.processes)
        threads = torch.get_num_threads()
        try:
            for _, connection in self._children.values():
                connection.send(b"1")
            torch.set_num_threads(threads_of(self._job))
            with process_group(self._folder, parallel, device):
                yield parallel
            if not self._ended.wait(_END_S):
                logger.warning("%s: processes of the training have not ended; they are killed", self._job.run)
        except (Cancelled, FloatingPointError):
            raise
        except Exception:
            # The end of another rank breaks the connection to it. What ended it is the cause, and the thread that
            # watches it ends this process.
            if self._trouble.wait(_SETTLE_S):
                time.sleep(_END_S)
            raise
        finally:
            torch.set_num_threads(threads)

    def _fork(self, rank: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with warnings.catch_warnings():
            # See services.training.worker.fork_server: the threads of OpenBLAS, OpenMP and jemalloc know forks.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            for _, connection in self._children.values():
                connection.close()
            ours.close()
            self._be(rank, theirs)
        theirs.close()
        self._children[rank] = (pid, ours)

    def _be(self, rank: int, connection: socket.socket) -> NoReturn:
        """What another rank does."""
        code = EXIT_FAILED
        try:
            # Rank 0 is asked to stop, and all stop after the same step.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            begun = threading.Event()
            threading.Thread(target=_end_with, args=(connection, begun), name="rank 0", daemon=True).start()
            import torch

            begun.wait()
            torch.set_num_threads(threads_of(self._job))
            parallel = Parallel(self._job.spec.strategy, self.processes, rank)
            with process_group(self._folder, parallel, "cuda" if torch.cuda.is_available() else "cpu"):
                self._work(self._job, parallel)
            code = 0
        except Cancelled:
            code = EXIT_CANCELLED
        except BaseException as error:
            traceback.print_exc()
            with suppress(OSError):
                connection.sendall(json.dumps(failure_of(error)).encode())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # The rest of rank 0's own stack must not run here.
            os._exit(code)

    def _watch(self) -> None:
        """Waits for the ends of the others; ends this process, too, if one of them was not in order."""
        poll, ranks = select.poll(), {}
        for rank, (_, connection) in self._children.items():
            poll.register(connection, select.POLLIN)
            ranks[connection.fileno()] = rank
        codes = self._codes
        said: dict[int, bytes] = dict.fromkeys(self._children, b"")
        deadline: float | None = None
        while len(codes) < len(self._children):
            wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            events = poll.poll(wait)
            if not events:
                break
            for number, _ in events:
                rank = ranks[number]
                pid, connection = self._children[rank]
                data = _received(connection)
                if data:
                    said[rank] += data
                    continue
                poll.unregister(number)
                with self._lock:
                    codes[rank] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if codes[rank] not in _IN_ORDER and deadline is None:
                    self._trouble.set()
                    deadline = time.monotonic() + _GRACE_S
        if deadline is None:
            self._ended.set()
            return
        with self._lock:
            if not self._closing:
                self._give_up(said)

    def _give_up(self, said: dict[int, bytes]) -> NoReturn:
        code, codes = EXIT_FAILED, {rank: each for rank, each in self._codes.items() if each not in _IN_ORDER}
        lost = [(rank, each) for rank, each in codes.items() if each < 0 or not said[rank]]
        try:
            self._kill()
            if lost:
                code = EXIT_RANK_LOST
                rank, how = lost[0]
                logger.error("%s: process %d of %d %s", self._job.run, rank + 1, self.processes, _ending(how))
            else:
                # The order of the dictionary is that of their ends: the first has caused the others.
                failure = json.loads(said[next(iter(codes))])
                logger.error("run %s failed: %s: %s", self._job.run, failure["reason"], failure["message"])
                if not (self._job.folder / FAILURE_FILE).exists():
                    write_json(self._job.folder / FAILURE_FILE, failure)
            shutil.rmtree(self._folder, ignore_errors=True)
            self._before_exit()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _kill(self) -> None:
        for rank, (pid, _) in self._children.items():
            if rank not in self._codes:
                os.kill(pid, signal.SIGKILL)


@contextmanager
def process_group(folder: Path, parallel: Parallel, device: str) -> Iterator[None]:
    """The default process group of torch, of all ranks.

    Args:
        folder: where they meet, on this machine.
        parallel: this process among them.
        device: the type of the device, `cpu` or `cuda`.
    """
    from torch import distributed

    # Otherwise both listen on the machine's public address, too.
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
    os.environ.update(GLOO_SOCKET_IFNAME=loopback, NCCL_SOCKET_IFNAME=loopback)
    made: Any = distributed  # It exports the class, but does not say so in its types.
    with meeting(made.FileStore(str(folder / "store"), parallel.processes), parallel, device):
        yield


@contextmanager
def meeting(store: Any, parallel: Parallel, device: str) -> Iterator[None]:
    """The default process group of torch, whose processes meet by a store of torch; see `process_group`."""
    from torch import distributed

    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        store=store,
        rank=parallel.rank,
        world_size=parallel.processes,
        # Another may still load a large model, and rank 0 may store a checkpoint.
        timeout=PATIENCE,
    )
    yield
    # After an error the others may not answer any more.
    distributed.destroy_process_group()


def trained(
    job: Job,
    model: nn.Module,
    objective: Objective,
    together: AbstractContextManager[Parallel],
    *,
    device: torch.device,
    resume: Checkpoint | None,
    on_step: Callable[[StepProgress], None],
    on_checkpoint: Callable[[Checkpoint], object],
    should_stop: Callable[[], bool],
) -> Training:
    """Trains as one of the processes, and measures its memory; the others are there within `together`."""
    options, before = job.spec.optimization, peak_memory()
    with together as parallel:
        outcome = train(
            model,
            objective,
            options,
            device=device,
            parallel=parallel,
            resume=resume,
            on_step=on_step,
            on_checkpoint=on_checkpoint,
            should_stop=should_stop,
        )
    return Training(outcome, usable_precision(options.precision, device), before, peak_memory())


def threads_of(job: Job) -> int:
    """Threads of each process of the training; they share those of the run."""
    return max(1, job.threads // job.spec.processes)


def failure_of(error: BaseException) -> dict[str, Any]:
    """An error as `failure.json` has it."""
    known = explained(error) if isinstance(error, Exception) else None
    if known is None:
        known = FailedPreconditionError(f"{type(error).__name__}: {error}", reason="TRAINING_FAILED")
    return {"reason": known.reason, "message": known.message[:_MAX_MESSAGE], "metadata": known.metadata}


def _end_with(connection: socket.socket, begun: threading.Event) -> None:
    """Ends this process when rank 0 has ended; `begun` is set when rank 0 says so."""
    while _received(connection):
        begun.set()
    os._exit(EXIT_FAILED)


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(_MESSAGE_BYTES)
    except OSError:
        return b""


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed by signal 9, which usually means that the system ran out of memory"
    if code < 0:
        return f"was ended by signal {-code} ({signal.Signals(-code).name})"
    return "ended without a result"
