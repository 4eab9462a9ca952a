"""Processes that share a training and end in different ways: `… ranks_program FOLDER`; how, is in `ends.json` there.

A program of its own, for processes are forked before torch has threads.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

from services.kit.errors import DataLossError, FailedPreconditionError
from services.training.adapters.job import Job
from services.training.domain.tasks import TextClassificationTask
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.engine.methods.full import Full
from services.training.engine.parallel import Parallel
from services.training.worker.ranks import Ranks

KINDS = ("finishes", "fails", "is killed", "first fails", "first is killed", "first is killed early")
OWN_ERROR = 5
_PROCESSES = 3
_PATIENCE_S = 60.0


def _together() -> None:
    """A step that needs all processes."""
    import torch
    from torch import distributed

    distributed.all_reduce(torch.ones(1))


def _other(kind: str, rank: int) -> None:
    _together()
    if kind == "is killed" and rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "fails" and rank == 1:
        raise FailedPreconditionError("the second process has no such file", reason="NOT_THERE")
    _together()


def first(folder: Path, kind: str) -> int:
    """What rank 0 does; returns its exit code."""
    spec = TrainingSpec(
        "m", "b", "d", "", "0" * 64, TextClassificationTask("label"), Full(),
        Optimization(max_steps=2, batch_size=8), strategy="ddp", processes=_PROCESSES,
    )  # fmt: skip
    job = Job("runs/r", folder, "", folder, folder, folder, spec, 3, folder, folder)

    def work(_: Job, parallel: Parallel) -> None:
        _other(kind, parallel.rank)

    with Ranks(job, work).watch(lambda: None) as ranks:
        if kind == "first is killed early":
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            with ranks.training("cpu"):
                _together()
                if kind == "first is killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if kind == "first fails":
                    raise DataLossError("the first process has lost its data")
                _together()
        except DataLossError:
            return OWN_ERROR
    return 0


def main() -> None:
    """See the module."""
    import_module("torch.distributed")
    folder, ends = Path(sys.argv[1]), {}
    for kind in KINDS:
        place = folder / kind
        place.mkdir()
        # All processes have an end of this pipe; the kernel closes the last one with the last process.
        reads, writes = os.pipe()
        began = time.monotonic()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                code = first(place, kind)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writes)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        gone = bool(select.select([reads], [], [], _PATIENCE_S)[0])
        os.close(reads)
        ends[kind] = {"code": code, "gone": gone, "seconds": time.monotonic() - began}
    (folder / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main()
