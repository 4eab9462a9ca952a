"""`python -m infra.audit`: exits with 1 if the lock has a version with a known vulnerability that is not accepted.

It always compares the lock with `advisories.toml`, a list with the date of its last review, and asks PyPI's database
through pip-audit if it can; the output says whether it could. A mirror that serves packages without the database would
let everything pass, so the database counts as reachable only if it reports a vulnerability that is known to be in it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;\\]+)", re.MULTILINE)
_ROOT = Path(__file__).parents[2]
LOCK, LIST = _ROOT / "requirements.lock", Path(__file__).with_name("advisories.toml")
DATABASE = "https://pypi.org/pypi"
_KNOWN_HOLE = "requests/2.19.0/json"
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Advisory:
    """A known vulnerability."""

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


def read_date(text: str) -> date:
    """Date of the list's last review."""
    found = tomllib.loads(text)["reviewed"]
    assert isinstance(found, date)
    return found


def read_lock(text: str) -> Mapping[str, str]:
    """Versions in the lock, by canonical package name."""
    return {canonicalize_name(pin["name"]): pin["version"] for pin in _PIN.finditer(text)}


def findings(locked: Mapping[str, str], advisories: Iterable[Advisory]) -> Iterator[tuple[Advisory, str]]:
    """The advisories that apply to a locked version, with that version."""
    for advisory in advisories:
        version = locked.get(advisory.package)
        if version is not None and advisory.affected.contains(version, prereleases=True):
            yield advisory, version


def why_unreachable(database: str = DATABASE) -> str | None:
    """Why PyPI's database cannot be asked; None when it can. One request."""
    try:
        with urllib.request.urlopen(f"{database}/{_KNOWN_HOLE}", timeout=_TIMEOUT_S) as answer:  # noqa: S310 - our own
            value = json.load(answer)
    except (OSError, ValueError) as error:
        return str(error)
    return None if value.get("vulnerabilities") else "it serves packages without their vulnerabilities"


def from_pip_audit(report: Mapping[str, Any]) -> tuple[list[Advisory], list[str]]:
    """The vulnerabilities in pip-audit's JSON, and the packages that it could not look up."""
    holes, skipped = [], []
    for each in report["dependencies"]:
        if "skip_reason" in each:
            skipped.append(str(each["name"]))
        for hole in each.get("vulns", ()):
            ids = (hole["id"], *hole.get("aliases", ()))
            holes.append(Advisory(ids, canonicalize_name(each["name"]), SpecifierSet(f"=={each['version']}")))
    return holes, skipped


def ask_database() -> tuple[list[Advisory], list[str]]:
    """Has pip-audit compare the lock with PyPI's database."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--disable-pip", "--format", "json"]
    done = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True, check=False)
    try:
        return from_pip_audit(json.loads(done.stdout))
    except (ValueError, KeyError) as error:
        raise SystemExit(f"pip-audit ended with {done.returncode}: {done.stderr.strip()[-2000:]}") from error


def report(locked: Mapping[str, str], holes: Iterable[Advisory], accepted: Mapping[str, str]) -> int:
    """Prints the vulnerabilities of the lock; returns the number of those that are not accepted.

    Args:
        locked: version by name.
        holes: the known vulnerabilities.
        accepted: why one is safe here, by its id.
    """
    left = 0
    for advisory, version in findings(locked, holes):
        names = ", ".join(advisory.ids)
        reason = advisory.accepted or next((accepted[name] for name in advisory.ids if name in accepted), "")
        if reason:
            sys.stdout.write(f"{advisory.package} {version} has {names}. {reason}\n")
        else:
            left += 1
            sys.stderr.write(f"{advisory.package} {version} has {names}: lock a version outside {advisory.affected}.\n")
    return left


def main() -> int:
    """Prints what was found and where it was looked up; returns the exit status."""
    text = LIST.read_text(encoding="utf-8")
    listed = read_advisories(text)
    locked = read_lock(LOCK.read_text(encoding="utf-8"))
    accepted = {name: each.accepted for each in listed if each.accepted for name in each.ids}
    left = report(locked, listed, accepted)
    why = why_unreachable()
    if why is not None:
        sys.stdout.write(
            f"Compared with infra/audit/advisories.toml, last reviewed on {read_date(text)}. PyPI's database cannot "
            f"be asked from here: {why}.\n"
        )
        return 1 if left else 0
    holes, skipped = ask_database()
    left += report(locked, holes, accepted)
    words = f", but not about {', '.join(sorted(skipped))}" if skipped else ""
    sys.stdout.write(f"pip-audit asked PyPI's database about {len(locked) - len(skipped)} packages{words}.\n")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
