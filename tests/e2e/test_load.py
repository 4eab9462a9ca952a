"""Load through every door for a short time, beside other tests; `tests/faults/test_load.py` is full load, and long."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Mesh
from tests.load.session import full_load, hang_ups, prepare_mesh

SECONDS = 10.0
CALLERS = 300


@pytest.fixture(scope="module")
def loaded(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    prepare_mesh(mesh.stack, mesh.key, tmp_path_factory.mktemp("models") / "small")
    return mesh


def test_every_door_answers_under_load_and_every_process_lives_on(loaded: Mesh, tmp_path: Path) -> None:
    full_load(loaded.stack, loaded.key, tmp_path, SECONDS, callers=1, pause_s=0.5)


def test_callers_who_hang_up_in_the_middle_of_a_stream_leave_nothing_behind(loaded: Mesh, tmp_path: Path) -> None:
    hang_ups(loaded.stack, loaded.key, tmp_path, CALLERS)
