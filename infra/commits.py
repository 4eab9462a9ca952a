"""Checks the newest commits against CONTRIBUTING.md's rules: `python infra/commits.py`, a part of `make check`.

Only commits after `BASE` are checked: older subjects are longer, and history is not rewritten for it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASE = "e05b907bc3d46c3c2a6bd55ccc0ea8c768faed77"
LONGEST = 72

# "Added", "Adding", "Adds": the imperative is "Add". Only words that cannot be an imperative are listed.
_NOT_IMPERATIVE = re.compile(
    r"(add|allow|chang|creat|delet|document|drop|fix|generat|implement|improv|mov|refactor|remov|renam|replac|report"
    r"|test|updat|us)(e?s|e?d|ing)",
    re.IGNORECASE,
)


def problems(message: str) -> list[str]:
    """What is wrong with a commit's message; empty if nothing is."""
    subject, *rest = message.rstrip("\n").split("\n")
    found = []
    if len(subject) > LONGEST:
        found.append(f"the subject has {len(subject)} characters; {LONGEST} is the limit, the rest belongs in the body")
    if subject.endswith("."):
        found.append("the subject ends with a full stop; leave it out")
    if _NOT_IMPERATIVE.fullmatch(subject.split(" ", 1)[0]):
        found.append("the subject is not in the imperative; write it as an order, for example `Add a retry`")
    if rest and rest[0]:
        found.append("an empty line is missing between subject and body")
    return found


def check(repository: Path, base: str) -> list[str]:
    """One line for each problem of a commit after `base`; merges are excepted.

    A shallow clone may lack `base`: then all of its commits are newer. A source tree without a repository of its own,
    and a complete history without `base` (a fork that rewrote it), have no commits to check.
    """
    top = _git(repository, "rev-parse", "--show-toplevel")
    if top is None or Path(top.strip()).resolve() != repository.resolve():
        return []
    commits = _git(repository, "rev-list", f"{base}..HEAD")
    if commits is None:
        if _git(repository, "rev-parse", "--is-shallow-repository") != "true\n":
            return []
        commits = _git(repository, "rev-list", "HEAD") or ""
    found = []
    for commit in commits.split():
        # Not `git log`: at the edge of a shallow clone it no longer knows that a commit is a merge.
        header, _, message = (_git(repository, "cat-file", "commit", commit) or "").partition("\n\n")
        if len(re.findall(r"^parent ", header, re.MULTILINE)) < 2:
            found += [f"{commit[:10]} {message.split(chr(10))[0]!r}: {problem}" for problem in problems(message)]
    return found


def _git(repository: Path, *arguments: str) -> str | None:
    """The output of git; None if it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def main() -> None:
    """Checks this repository."""
    found = check(ROOT, BASE)
    if found:
        sys.exit("Commits that break the rules of CONTRIBUTING.md:\n  " + "\n  ".join(found))


if __name__ == "__main__":
    main()
