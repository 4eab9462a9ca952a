"""Minutes of load: no process dies, grows without limit or logs errors, and no call fails while versions swap.

`TIDEMILL_LOAD_SECONDS` says how long; `tests/e2e/test_load.py` is the short one.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from infra.stack.state import StackState
from infra.stack.testing import running_parts
from infra.stack.topology import NAMES
from tests.integration.inference.builds import make_classifier
from tests.load.session import full_load, prepare_mesh
from tests.load.small_models import publish
from tests.load.steady import SteadyCallers
from tests.load.watch import Logs, ended, memory, processes

pytestmark = [pytest.mark.real, pytest.mark.slow]

SECONDS = float(os.environ.get("TIDEMILL_LOAD_SECONDS", "300"))
SWAPS = 50
PER_S = 200.0


@pytest.fixture
def mesh() -> Iterator[StackState]:
    with (
        tempfile.TemporaryDirectory(prefix="tidemill-") as short,
        running_parts(NAMES, Path(short) / "s", own=True) as stack,
    ):
        yield stack


@pytest.mark.timeout(SECONDS + 1200)
def test_full_load_leaves_every_process_alive(mesh: StackState, tmp_path: Path) -> None:
    key = (mesh.state / "api-key").read_text().strip()
    prepare_mesh(mesh, key, tmp_path / "models")
    full_load(mesh, key, tmp_path / "ledgers", SECONDS)


@pytest.mark.timeout(SECONDS + 1200)
async def test_no_call_fails_and_none_is_answered_wrongly_while_versions_swap(mesh: StackState, tmp_path: Path) -> None:
    model, labels = "swapped", {"1": "positive", "2": "negative"}
    for number, weight in (("1", 2.0), ("2", -2.0)):
        make_classifier(tmp_path / f"{model}-{number}", weight=weight)
        await asyncio.to_thread(publish, mesh, tmp_path / f"{model}-{number}", model)
    before, logs = processes(mesh), Logs(mesh)
    held: Mapping[str, int] = {}
    callers = SteadyCallers(mesh, model, labels)
    async with callers.calling(PER_S):
        for swap in range(SWAPS):
            # With what each process needs for its first calls.
            held = memory(mesh) if swap == SWAPS // 10 else held
            await callers.roll_back(version=1 + swap % 2)
            await asyncio.sleep(SECONDS / SWAPS)
    grown = {name: f"{now - held[name]:+d} of {held[name]}" for name, now in memory(mesh).items() if name in held}
    sys.stdout.write(f"{callers.report()}; MiB grown after a tenth: {grown}\n")
    assert callers.failed == []
    assert callers.wrong == []
    assert callers.answered > SECONDS * PER_S / 2, "too few calls to say anything"
    assert min(callers.by_version[number] for number in labels) > callers.answered / 10
    # A version that left its route is unloaded after `drain_s`, here if the swaps are rarer: its process ends with it.
    assert [process for process in ended(mesh, before) if f"/{model}" not in process.name] == []
    assert logs.errors() == []
