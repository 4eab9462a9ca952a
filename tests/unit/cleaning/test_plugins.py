"""Operators of other packages: the example is installed, found, and cleans; what is wrong with one is said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cleaning.domain.recipe import OperatorSpec, RecipeError
from services.cleaning.engine.compiler import compile_recipe
from services.cleaning.engine.registry import default_registry, own_registry

PLUGIN = Path(__file__).parents[3] / "examples" / "plugin"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example plugin, installed as anybody would, into a folder of the test's own."""
    uv = Path(sys.prefix) / "bin" / "uv"
    command = [str(uv), "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--offline"]
    subprocess.run([*command, "--python", sys.executable, "--target", str(tmp_path), str(PLUGIN)], check=True)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("example_operators", None)


def entry_point(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """An installed package that brings one operator."""
    metadata = folder / "broken_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[tidemill.operators]\n{line}\n")
    monkeypatch.syspath_prepend(folder)


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
    entry_point(tmp_path, monkeypatch, "exact_dedup = elsewhere:ExactDedup")
    with pytest.raises(ValueError, match=r"'exact_dedup': .*duplicates:ExactDedup and elsewhere:ExactDedup"):
        default_registry()


@pytest.mark.parametrize("place", ["no_such_module:Operator", "json:NoSuchOperator", "json:JSONDecoder"])
def test_an_operator_that_cannot_be_loaded_is_the_recipes_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    entry_point(tmp_path, monkeypatch, f"broken = {place}")
    with pytest.raises(RecipeError, match=f"broken cannot be loaded from {place}"):
        compile_recipe(default_registry(), [OperatorSpec("broken", {})])
