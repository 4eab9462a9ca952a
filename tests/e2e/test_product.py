"""A short cut of `make loop`: what customers say reaches them as a better model, and no one operates the mesh."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Mesh
from tests.faults.strangers import open_folder
from tests.plugins import CLIENT, install


# Two trainings, and as many users as a decision by statistics needs: five minutes.
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_customers_teach_the_model_of_a_product(mesh: Mesh, tmp_path: Path) -> None:
    install(tmp_path, CLIENT)
    arguments = ["--short", "--running", "--state", str(mesh.stack.state)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TIDEMILL_HOME": str(mesh.stack.home)}
    with open_folder() as out:
        ended = subprocess.run(
            [sys.executable, "-m", "examples.product", *arguments, "--out", str(out)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        # It ends with an error if a call failed, or an answer or a judgement was lost.
        assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
        assert (out / "loop.png").stat().st_size > 10_000
    assert "promote" in ended.stdout
