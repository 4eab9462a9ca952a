"""A worker stands back where the processor is busy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.training.adapters.job import Job
from services.training.domain.tasks import TextClassificationTask
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.engine.methods.lora import Lora

_AUTOGROUP = Path("/proc/self/autogroup")
_SPEC = TrainingSpec(
    "reviews", "base", "d", "", "0" * 64, TextClassificationTask("label"), Lora(), Optimization(max_steps=2)
)
# In place of the training, it prints the niceness of its process, and of its session where the kernel has one.
_PROGRAM = f"""
import os, pathlib, sys
from services.training.worker import __main__ as worker
group = pathlib.Path("{_AUTOGROUP}")
of_session = lambda: group.read_text().split()[-1] if group.exists() else os.nice(0)
worker._run = lambda job, stop, ranks: print(os.nice(0), of_session()) or 0
sys.exit(worker.work_on(pathlib.Path(sys.argv[1])))
"""


@pytest.mark.parametrize("niceness", [0, 7])
def test_a_worker_has_the_niceness_of_its_job(tmp_path: Path, niceness: int) -> None:
    job = Job("runs/r", tmp_path, "", tmp_path, tmp_path, tmp_path, _SPEC, 1, tmp_path, tmp_path, niceness=niceness)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(job.write())],
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,
    )
    assert done.stdout.split() == [str(niceness), str(niceness)]


def test_a_session_that_is_not_the_workers_own_keeps_its_priority(tmp_path: Path) -> None:
    if not _AUTOGROUP.exists():
        pytest.skip("this kernel has no groups of sessions")
    before = _AUTOGROUP.read_text(encoding="ascii")
    program = "from services.training.worker.priority import lower_priority; lower_priority(7)"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert _AUTOGROUP.read_text(encoding="ascii") == before
