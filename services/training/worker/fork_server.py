"""A process that has loaded the libraries of training and forks one that works on a job: `… fork_server SOCKET`.

Loading them takes 10 to 20 seconds of a core, as much as a small run itself. Requests and reports are JSON over a
socket that the service passes on (services.training.adapters.launching). It ends with the service; its forks continue.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from services.kit.engine import import_openvino
from services.training.worker.__main__ import OFFLINE, work_on

logger = logging.getLogger(__name__)
_MESSAGE_BYTES = 65_536
_LOADED = (
    "torch",
    "transformers.generation.utils",
    "transformers.modeling_utils",
    "peft",
    "nncf",
    "openvino_genai",
    "openvino_tokenizers",
    "rouge_score.rouge_scorer",
    "pyarrow.parquet",
    "services.training.worker.generation",
    "services.training.worker.text_classification",
    "services.training.worker.text_embedding",
    "services.training.worker.multi_label_classification",
    "services.training.worker.ordinal_classification",
    "services.training.worker.token_classification",
)
"""What a run imports that takes long; anything else is imported by the fork."""


class ForkServer:
    """Serves one connection until its other end is closed."""

    def __init__(self, connection: socket.socket, work_on: Callable[[Path], int]) -> None:
        """`work_on` does the job in a file, in the fork, and returns the exit code."""
        self._connection, self._work_on = connection, work_on
        self._jobs: dict[int, str] = {}
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        """Forks a process for each request, and reports how each ended."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._connection, select.POLLIN | select.POLLHUP)
        poll.register(self._woken, select.POLLIN)
        while True:
            for number, event in poll.poll():
                if number == self._woken:
                    os.read(self._woken, 4096)
                    self._report_ended()
                elif event & select.POLLHUP:
                    # The service has ended; what it still asked for would run without it.
                    return
                else:
                    self._fork(json.loads(self._connection.recv(_MESSAGE_BYTES)))

    def _report_ended(self) -> None:
        while self._jobs:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            self._send({"job": self._jobs.pop(pid), "code": os.waitstatus_to_exitcode(status)})

    def _fork(self, request: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            # Python warns of a fork beside threads. Those here belong to OpenBLAS, OpenMP and jemalloc, which know
            # forks; nothing else was started.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            self._work(request)
        self._jobs[pid] = request["job"]
        self._send({"job": request["job"], "pid": pid})

    def _send(self, report: dict[str, Any]) -> None:
        try:
            self._connection.send(json.dumps(report).encode())
        except OSError:
            # The service has ended, as the next event says.
            logger.info("the service does not listen any more")

    def _work(self, request: dict[str, Any]) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._connection.close()
            os.close(self._woken)
            os.close(self._waker)
            os.setsid()
            log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            os.environ.update(request["environment"])
            code = self._work_on(Path(request["job"]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # The rest of the server's own stack must not run here.
            os._exit(code)


def load() -> None:
    """Imports what runs need. What fails here fails in a run, too, and is reported as its failure."""
    os.environ.update(OFFLINE)
    import_openvino()
    for name in _LOADED:
        try:
            import_module(name)
        except Exception:
            logger.exception("cannot load %s before a run needs it", name)
    # A collection in a fork would write to, and so copy, every page with an object.
    gc.collect()
    gc.freeze()


def given_connection() -> socket.socket:
    """The socket that the service passed on."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    return connection


def main() -> None:
    """See the module."""
    connection = given_connection()
    load()
    ForkServer(connection, work_on).serve()


if __name__ == "__main__":
    main()
