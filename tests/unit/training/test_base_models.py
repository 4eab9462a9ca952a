"""How base models are prepared."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from services.training.adapters.base_models import _cached_results


def test_results_are_cached_during_the_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def read(path: str) -> list[str]:
        asked.append(path)
        return [path]

    module = ModuleType("reader_of_files")
    monkeypatch.setattr(module, "read", read, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with _cached_results(module.__name__, "read"):
        assert module.read("a") is module.read("a")
        module.read("b")
    assert asked == ["a", "b"]
    assert module.read is read
