"""The speed of the machine is measured once and kept; tests/integration/training measures it for real."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.kit.errors import UnavailableError
from services.training.adapters import calibration
from services.training.adapters.calibration import MeasuredMachine

_SPEED = {"per_layer": 0.1, "per_gflop": 20.0, "per_gbyte": 100.0, "per_gvalue": 0.0}
_FOUND = {"speeds": {"fp32": _SPEED, "int8": _SPEED}, "tail": 1.2}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured."""
    calls: list[str] = []

    def measure(architecture: str) -> dict[str, Any]:
        calls.append(architecture)
        return _FOUND

    monkeypatch.setattr(calibration, "_measure", measure)
    return calls


def test_it_is_measured_once_for_each_architecture(tmp_path: Path, measured: list[str]) -> None:
    first = MeasuredMachine(tmp_path / "speed").device("encoder")
    again = MeasuredMachine(tmp_path / "speed").device("encoder")
    assert (measured, first) == (["encoder"], again)
    assert first.measured
    assert first.speeds["encoder"]["int8"].per_gflop == 20.0
    MeasuredMachine(tmp_path / "speed").device("causal")
    assert measured == ["encoder", "causal"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"speeds": [], "tail": 2}', '{"speeds": {}, "tail": 0.1}'])
def test_a_damaged_file_is_measured_again(tmp_path: Path, measured: list[str], damage: str) -> None:
    MeasuredMachine(tmp_path).device("encoder")
    (file,) = tmp_path.iterdir()
    file.write_text(damage, encoding="utf-8")
    assert MeasuredMachine(tmp_path).device("encoder").tail == 1.2
    assert measured == ["encoder", "encoder"]


def _fails(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], 1, "", "no such thing")


def _lasts(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
    raise subprocess.TimeoutExpired("calibration", 540)


@pytest.mark.parametrize(("run", "reason"), [(_fails, "CALIBRATION_FAILED"), (_lasts, "CALIBRATION_SLOW")])
def test_a_machine_that_cannot_be_measured_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any], reason: str
) -> None:
    monkeypatch.setattr("services.training.adapters.calibration.subprocess.run", run)
    with pytest.raises(UnavailableError) as refused:
        MeasuredMachine(tmp_path).device("encoder")
    assert refused.value.reason == reason
    assert not list(tmp_path.iterdir())
