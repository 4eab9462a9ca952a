"""`python -m infra.audit`: ends with 1 where requirements.lock names a version of the list that nothing makes safe."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;\\]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Advisory:
    """A known hole."""

    ids: tuple[str, ...]
    package: str
    affected: SpecifierSet
    accepted: str = ""
    """Why an affected version is safe here; empty if it is not."""


def read_advisories(text: str) -> tuple[Advisory, ...]:
    """The advisories of a list in TOML."""
    return tuple(
        Advisory(
            tuple(entry["ids"]),
            canonicalize_name(entry["package"]),
            SpecifierSet(entry["affected"]),
            entry.get("accepted", ""),
        )
        for entry in tomllib.loads(text)["advisory"]
    )


def read_lock(text: str) -> Mapping[str, str]:
    """Version by canonical name."""
    return {canonicalize_name(pin["name"]): pin["version"] for pin in _PIN.finditer(text)}


def findings(locked: Mapping[str, str], advisories: Iterable[Advisory]) -> Iterator[tuple[Advisory, str]]:
    """The advisories that a locked version has, with that version."""
    for advisory in advisories:
        version = locked.get(advisory.package)
        if version is not None and advisory.affected.contains(version, prereleases=True):
            yield advisory, version


def main() -> int:
    """Prints what was found; returns the exit status."""
    root = Path(__file__).parents[2]
    advisories = read_advisories(Path(__file__).with_name("advisories.toml").read_text(encoding="utf-8"))
    locked = read_lock((root / "requirements.lock").read_text(encoding="utf-8"))
    open_holes = 0
    for advisory, version in findings(locked, advisories):
        names = ", ".join(advisory.ids)
        if advisory.accepted:
            sys.stdout.write(f"{advisory.package} {version} has {names}. {advisory.accepted}\n")
        else:
            open_holes += 1
            sys.stderr.write(f"{advisory.package} {version} has {names}: lock a version outside {advisory.affected}.\n")
    return 1 if open_holes else 0


if __name__ == "__main__":
    sys.exit(main())
