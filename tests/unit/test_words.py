"""Keeps a private dialect out of what people read: strings, comments, documents, protos, and names in code.

Each pattern names the plain words to use instead. Decisions (docs/adr) and failed experiments (docs/LOG.md) are not
rewritten, so they are not checked, and neither are the strings of tests, which are often data.
"""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    *("services", "gateway", "infra", "clients", "examples", "docs", "protos/tidemill", "tests", "benchmarks"),
    *("pipelines", "*.md", "*.toml", "*.yaml", "*.yml", "Makefile"),
)
KINDS = (".py", ".md", ".proto", ".toml", ".yaml", ".yml", ".html", "Makefile")
NOT_CHECKED = ("docs/adr/", "docs/LOG.md", "tests/unit/test_words.py")

WORDS = {
    r"\banew\b": "again, new",
    r"\b(some|no|any|every)body\b(?!\")": "someone, no one, anyone, everyone; or say who",
    r"\btold\b|\btells?\b": "publish, report, log, say, show, return, is asked to",
    r"\bhears?\b": "get, receive, consume",
    r"\bgo(es)? on\b(?! (request|and on))": "continue, resume",
    r"\b(is|are|was|were) away\b": "unavailable",
    r"(?<!there )(?<!There )\b(is|are) no (?!(longer|more|one|one's)\b)": "is not a",
    r"\bbear(s|ing)?\b|\bborne\b": "have",
    r"\bmend(s|ed|ing)?\b": "repair, fix, retry",
    r"\bso many\b": "this many; or name the number",
    r"\bserves? on\b(?! (a |port|%))": "keeps serving",
    r"\bgood enough\b": "passes",
    r"\bas it stands\b": "current, unchanged",
    r"\bfault with\b": "reject",
    r"\bastray\b": "wrong; of training: diverged",
    r"\bin vain\b": "without success",
    r"\bwhat (\w+ ){1,3}comes? to\b": "decision, result, state",
    r"\bcounts? for no\b": "cannot be matched with",
    r"\blooked into\b": "inspect, show",
    r"\b(is|are|was|were) \w+ no more\b": "not any more",
    r"\bfor whoever\b": "for the one who, for anyone who",
    r"\b(is|are) so(?=[.,;]| already| when\b| for\b)": "name the state: is set, is paused, is unavailable",
}

# Parts of names in code. Not `tell`, which is a method of files. A constant's limit is MAX or MIN.
NAMES = re.compile(
    r"(?i:(?<![a-z])(told|tells|anew|somebody|everybody|suspects?|parcels?|bell)(?![a-z]))|\b_?(MOST|LEAST)_[A-Z]"
)

# One of these is in whatever a pattern finds: reading the tokens of every file would take seconds.
HINTS = (
    *(
        "anew",
        "body",
        "told",
        "tell",
        "hear",
        "go on",
        "goes on",
        " away",
        "is no ",
        "are no ",
        "bear",
        "borne",
        "mend",
        "serve on",
        "serves on",
    ),
    *("so many", "good enough", "as it stands", "fault with", "astray", "in vain"),
    *("come to", "comes to", "for no ", "looked into", " no more", "for whoever", "is so", "are so"),
)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that people read: comments and strings of code, everything in documents."""
    text = path.read_text("utf-8")
    lower = text.lower()
    if not any(hint in lower for hint in HINTS) or not any(re.search(pattern, lower) for pattern in WORDS):
        return
    if path.suffix == ".py":
        data = path.is_relative_to(ROOT / "tests")
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            # From Python 3.12 an f-string comes in pieces.
            text_of_code = token.type == tokenize.STRING or "FSTRING" in tokenize.tok_name[token.type]
            if token.type == tokenize.COMMENT or (text_of_code and not (data and not token.string.startswith('"""'))):
                for number, line in enumerate(token.string.splitlines(), token.start[0]):
                    yield number, line
    else:
        for number, line in enumerate(text.splitlines(), 1):
            if path.suffix != ".proto" or "//" in line:
                yield number, line


def found(path: Path) -> list[str]:
    """What is written in the dialect, with its line and what to write instead."""
    return [
        f"{path}:{number}: {match[0]!r}; write {instead!r}: {line.strip()[:80]}"
        for number, line in prose(path)
        for pattern, instead in WORDS.items()
        if (match := re.search(pattern, line, re.IGNORECASE))
    ]


def odd_names(path: Path) -> list[str]:
    """Names in code that use the dialect, with their line."""
    text = path.read_text("utf-8")
    if not NAMES.search(text):
        return []
    return [
        f"{path}:{token.start[0]}: {token.string}"
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.NAME and NAMES.search(token.string)
    ]


def files() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--", *ROOMS], capture_output=True, text=True, check=False
    ).stdout.split()
    if not listed:
        pytest.skip("not a git repository")
    wanted = [name for name in listed if not name.startswith(NOT_CHECKED)]
    return [ROOT / name for name in wanted if name.endswith(KINDS)]


def test_the_text_that_people_read_is_plain_english() -> None:
    checked = files()
    assert len(checked) > 300
    assert [sentence for path in checked for sentence in found(path)] == []


def test_names_in_code_are_plain_english() -> None:
    assert [name for path in files() if path.suffix == ".py" for name in odd_names(path)] == []


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ('"""The pipeline is told of it."""\n', "publish"),
        ("x = f'The value is no {kind}.'\n", "is not a"),
        ("# Read anew by whoever asks.\n", "again"),
        ('"""Tells the pipeline."""\n', "publish"),
        ('"""The triggers with what they come to now."""\n', "decision"),
        ("# The route is so already.\n", "is set"),
    ],
)
def test_the_dialect_is_found_with_the_words_to_use(tmp_path: Path, text: str, instead: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(text)
    (sentence,) = found(path)
    assert "module.py:1" in sentence
    assert instead in sentence


def test_every_kind_of_text_is_walked() -> None:
    walked = {path.name if path.suffix == "" else path.suffix for path in files()}
    assert walked == set(KINDS)
    names = {str(path.relative_to(ROOT)).partition("/")[0] for path in files()}
    assert {"pyproject.toml", "benchmarks", "pipelines", "examples"} <= names


def test_plain_text_and_methods_of_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("file.tell()\nthreshold = 'There is no model m; it is no longer served.'\n")
    assert found(path) + odd_names(path) == []


def test_odd_names_are_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("_told_at = 1\nclass Bell: ...\n_MOST_BYTES = counter.most_common\n")
    assert [name.rpartition(" ")[2] for name in odd_names(path)] == ["_told_at", "Bell", "_MOST_BYTES"]
