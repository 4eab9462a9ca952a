"""Minutes of full load through every door: no process dies, grows without limit or logs errors.

`TIDEMILL_LOAD_SECONDS` says how long; `tests/e2e/test_load.py` is the short one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.stack.state import StackState
from infra.stack.testing import REUSE, running_parts
from infra.stack.topology import NAMES
from tests.load.session import full_load, prepare_mesh

pytestmark = [pytest.mark.real, pytest.mark.slow]

SECONDS = float(os.environ.get("TIDEMILL_LOAD_SECONDS", "300"))


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> Iterator[StackState]:
    monkeypatch.delenv(REUSE, raising=False)
    with tempfile.TemporaryDirectory(prefix="tidemill-") as short, running_parts(NAMES, Path(short) / "s") as stack:
        yield stack


@pytest.mark.timeout(SECONDS + 1200)
def test_full_load_leaves_every_process_alive(mesh: StackState, tmp_path: Path) -> None:
    key = (mesh.state / "api-key").read_text().strip()
    prepare_mesh(mesh, key, tmp_path / "models")
    full_load(mesh, key, tmp_path / "ledgers", SECONDS)
