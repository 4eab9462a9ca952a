"""LiteLLM's proxy, installed apart from Tidemill, before the mock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import peers
from benchmarks.serving.mesh import end_process, free_port

# Not 1.107.0, which was compromised.
PACKAGE = "litellm[proxy]==1.106.12"
KEY = "sk-bench"
_PATIENCE_S = 180.0


@contextmanager
def running(folder: Path, upstream: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Runs it with one worker, a master key and its usual logging, for the length of the block; yields host:port."""
    place = peers.installed("litellm", (PACKAGE,))
    port = free_port()
    model = {"model": "openai/mock", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    config = folder / "litellm.json"  # JSON is YAML
    config.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": "mock", "litellm_params": model}],
                "general_settings": {"master_key": KEY},
            }
        )
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")},
        "PYTHONPATH": str(place),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
    }
    command = [sys.executable, "-P", "-c", "from litellm import run_server; run_server()"]
    options = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with (folder / "litellm.log").open("wb") as log:
        process = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        _wait(process, port, folder / "litellm.log")
        yield f"127.0.0.1:{port}", process
    finally:
        end_process(process)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=2):
                return
        except (OSError, urllib.error.URLError):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"LiteLLM did not start:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.2)
