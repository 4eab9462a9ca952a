"""Each process imports with nothing but the packages of its own extra."""

from __future__ import annotations

import importlib.metadata as metadata
import json
import subprocess
import sys
from functools import cache

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Module to import, and the extras that its deployment installs.
PROCESSES = {
    "services.ingest.__main__": ("ingest",),
    "services.cleaning.__main__": ("cleaning",),
    "services.cleaning.bulk": ("cleaning",),
    "services.cleaning.adapters.bulk_engines": ("cleaning",),
    "services.training.__main__": ("training",),
    "services.inference.__main__": ("inference",),
    "services.pipeline.__main__": ("pipeline",),
    "services.telemetry.__main__": ("telemetry",),
    "gateway.__main__": ("gateway",),
    "gateway.cli.main": ("cli", "stack"),
}

_IMPORT_UNDER_GUARD = """
import importlib, json, sys
module, allowed = sys.argv[1], set(json.loads(sys.stdin.read()))
class Guard:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in allowed or top.startswith("_sysconfigdata"):
            return None
        raise ModuleNotFoundError(f"No module named {name!r} (not a package of this extra)", name=name)
sys.meta_path.insert(0, Guard())
found = importlib.import_module(module)
if hasattr(found, "create_cli"):
    # It imports its commands when it is made.
    found.create_cli()
"""


def _installed_closure(extras: tuple[str, ...]) -> set[str]:
    """Canonical names of the distributions that `tidemill[extras]` brings, itself included."""
    seen: set[tuple[str, str]] = set()
    queue = [("tidemill", extra) for extra in ("", *extras)]
    while queue:
        name, extra = queue.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for text in requirements:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                queue += [(canonicalize_name(requirement.name), e) for e in ("", *requirement.extras)]
    return {name for name, _ in seen}


# It reads what each installed package brought: most of a second.
_owners_of_modules = cache(metadata.packages_distributions)


def _importable(distributions: set[str]) -> list[str]:
    own = ["services", "gateway", "infra", "tidemill", "buf"]
    return own + [
        module
        for module, owners in _owners_of_modules().items()
        if distributions & {canonicalize_name(owner) for owner in owners}
    ]


@pytest.mark.parametrize("module", PROCESSES)
def test_process_imports_with_its_own_extra_only(module: str) -> None:
    allowed = _importable(_installed_closure(PROCESSES[module]))
    result = subprocess.run(
        [sys.executable, "-c", _IMPORT_UNDER_GUARD, module],
        input=json.dumps(allowed),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_guard_refuses_a_foreign_package() -> None:
    assert "torch" not in _importable(_installed_closure(("ingest",)))
    assert "torch" in _importable(_installed_closure(("training",)))
