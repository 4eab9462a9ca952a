"""Every package has its place in a contract of import-linter, so that none can import what it likes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
    "contracts"
]
LAYERS = [contract for contract in CONTRACTS if contract["type"] == "layers"]
# What nothing is in by itself: the folder of services.
ROOTS = {"services"}
# Where a new module must be given its place, too.
HOUSES = {"gateway", "gateway.console", "infra", "services.kit", "services.serving"}


def placed() -> set[str]:
    """Every module that a contract of layers names."""
    return {
        f"{container}.{name}" if container else name
        for contract in LAYERS
        for container in contract.get("containers", [""])
        for layer in contract["layers"]
        for name in re.findall(r"[\w.]+", layer)
    }


def packages() -> set[str]:
    folders = (path.parent for room in ("services", "gateway", "infra") for path in (ROOT / room).rglob("__init__.py"))
    return {".".join(folder.relative_to(ROOT).parts) for folder in folders}


def test_every_package_is_in_a_layer() -> None:
    found = packages()
    assert len(found) > 50
    assert sorted(found - placed() - ROOTS) == [], "give each a place in a contract of pyproject.toml"


@pytest.mark.parametrize("house", sorted(HOUSES))
def test_a_house_names_all_its_rooms(house: str) -> None:
    contract = next(contract for contract in LAYERS if house in contract.get("containers", ()))
    assert contract["exhaustive"]


def test_all_services_name_all_their_rooms() -> None:
    services = {name for name in packages() if re.fullmatch(r"services\.(?!kit|serving|masking)\w+", name)}
    (rooms,) = [contract for contract in LAYERS if "services.ingest" in contract.get("containers", ())]
    assert set(rooms["containers"]) == services
    assert rooms["exhaustive"]
