"""The check of commit messages, on repositories of every kind that a developer may have."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from infra import commits

LONG = "Describe in the subject everything that should stand in the body of this commit instead"


def git(repository: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, "-C", str(repository), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(repository: Path, message: str) -> str:
    git(repository, "commit", "-q", "--allow-empty", "-m", message)
    return git(repository, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A history whose base commit has a subject that is too long."""
    made = tmp_path / "repository"
    made.mkdir()
    git(made, "init", "-q", "-b", "main")
    commit(made, f"Old: {LONG}")
    return made


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (LONG, f"{len(LONG)} characters"),
        ("Add a retry.", "full stop"),
        ("Added a retry", "imperative"),
        ("Removes a retry", "imperative"),
        ("Add a retry\nIt was missing", "empty line"),
    ],
)
def test_a_message_that_breaks_a_rule_is_refused(message: str, problem: str) -> None:
    assert [problem in found for found in commits.problems(message)] == [True]


@pytest.mark.parametrize("message", ["Add a retry", "Use one clock\n\nTwo of them differed.\n", "x" * 72, "Fix 用户"])
def test_a_message_that_keeps_the_rules_passes(message: str) -> None:
    assert commits.problems(message) == []


def test_only_commits_after_the_base_are_checked(repository: Path) -> None:
    base = commit(repository, "Begin")
    assert commits.check(repository, base) == []
    commit(repository, LONG)
    assert len(commits.check(repository, base)) == 1


def test_a_shallow_clone_checks_the_commits_that_it_has(repository: Path, tmp_path: Path) -> None:
    base = commit(repository, "Begin")
    commit(repository, LONG)
    commit(repository, "Add a retry")
    git(tmp_path, "clone", "-q", "--depth", "2", repository.as_uri(), "shallow")
    assert len(commits.check(tmp_path / "shallow", base)) == 1
    git(tmp_path, "clone", "-q", "--depth", "1", repository.as_uri(), "shallower")
    assert commits.check(tmp_path / "shallower", base) == []


def test_merges_are_excepted_even_at_the_edge_of_a_shallow_clone(repository: Path, tmp_path: Path) -> None:
    base = commit(repository, "Begin")
    git(repository, "switch", "-q", "-c", "branch")
    commit(repository, "Add a retry")
    git(repository, "switch", "-q", "main")
    git(repository, "merge", "-q", "--no-ff", "-m", f"Merge: {LONG}", "branch")
    assert commits.check(repository, base) == []
    git(tmp_path, "clone", "-q", "--depth", "1", repository.as_uri(), "shallow")
    assert commits.check(tmp_path / "shallow", base) == []


def test_a_tree_without_its_own_history_has_nothing_to_check(repository: Path, tmp_path: Path) -> None:
    assert commits.check(tmp_path, "0" * 40) == []
    # An unpacked source archive inside someone else's repository.
    unpacked = repository / "tidemill"
    unpacked.mkdir()
    assert commits.check(unpacked, git(repository, "rev-parse", "HEAD")) == []


def test_a_rewritten_history_without_the_base_has_nothing_to_check(repository: Path) -> None:
    assert commits.check(repository, "0" * 40) == []


def test_this_repository_keeps_the_rules() -> None:
    assert commits.check(commits.ROOT, commits.BASE) == []
