"""The engine trains on a machine that has neither the mesh's transports nor its stores: benchmarks/gpu_training.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[3]
_WITHOUT = ("sqlalchemy", "mlflow", "openvino", "nncf", "grpc", "google.protobuf", "kafka", "opentelemetry", "pyarrow")
_PROGRAM = """
import sys
for name in {without!r}:
    sys.modules[name] = None
import services.training.adapters.checkpoints, services.training.engine.loop, services.training.engine.memory_plan
import services.training.engine.preferences, services.training.engine.tasks
from services.training.engine.methods import method_type, names
print([method_type(name).__name__ for name in names()])
"""


def test_the_engine_needs_no_transport_and_no_store() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(without=_WITHOUT)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Lora" in done.stdout
