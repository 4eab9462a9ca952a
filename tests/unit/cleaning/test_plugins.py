"""Operators of other packages: the example is installed, found, and cleans; what is wrong with one is reported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cleaning.domain.recipe import OperatorSpec, RecipeError
from services.cleaning.engine.compiler import compile_recipe
from services.cleaning.engine.registry import PLUGINS, default_registry, own_registry
from tests.plugins import entry_point, example_installed


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with example_installed(tmp_path, monkeypatch):
        yield


@pytest.mark.usefixtures("installed")
def test_an_operator_of_an_installed_package_cleans() -> None:
    assert "mask_tickets" not in own_registry().names
    registry = default_registry()
    # Its module costs nothing until a recipe names it.
    assert "example_operators" not in sys.modules
    recipe = compile_recipe(registry, [OperatorSpec("mask_tickets", {"prefix": "BUG-"})])
    assert recipe.clean("see BUG-42 and BUG-7", {}).text == "see [TICKET] and [TICKET]"
    with pytest.raises(RecipeError, match="prefx"):
        compile_recipe(registry, [OperatorSpec("mask_tickets", {"prefx": "BUG-"})])


def test_two_operators_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_point(tmp_path, monkeypatch, PLUGINS, "exact_dedup = elsewhere:ExactDedup")
    with pytest.raises(ValueError, match=r"'exact_dedup': .*exact_dedup:ExactDedup and elsewhere:ExactDedup"):
        default_registry()


@pytest.mark.parametrize("place", ["no_such_module:Operator", "json:NoSuchOperator", "json:JSONDecoder"])
def test_an_operator_that_cannot_be_loaded_is_the_recipes_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    entry_point(tmp_path, monkeypatch, PLUGINS, f"broken = {place}")
    with pytest.raises(RecipeError, match=f"broken cannot be loaded from {place}"):
        compile_recipe(default_registry(), [OperatorSpec("broken", {})])
