"""Keeps a private dialect out of the text that people read: strings, comments, documents and protos.

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
ROOMS = ("services", "gateway", "infra", "clients", "examples", "docs", "protos/tidemill", "tests", "*.md", "Makefile")
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
    r"\b[Aa]t most so many\b": "maximum number of",
    r"\bfor so many seconds\b": "for this many seconds",
    r"\bgood enough\b": "passes",
    r"\bas it stands\b": "current, unchanged",
    r"\bfault with\b": "reject",
    r"\bastray\b": "wrong; of training: diverged",
    r"\bin vain\b": "without success",
}

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
    ),
    *("so many", "good enough", "as it stands", "fault with", "astray", "in vain"),
)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that people read: comments and strings of code, everything in documents."""
    text = path.read_text("utf-8")
    if not any(hint in text for hint in HINTS) or not any(re.search(pattern, text) for pattern in WORDS):
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
        if (match := re.search(pattern, line))
    ]


def files() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--", *ROOMS], capture_output=True, text=True, check=False
    ).stdout.split()
    if not listed:
        pytest.skip("not a git repository")
    wanted = [name for name in listed if not name.startswith(NOT_CHECKED)]
    return [ROOT / name for name in wanted if name.endswith((".py", ".md", ".proto", "Makefile"))]


def test_the_text_that_people_read_is_plain_english() -> None:
    checked = files()
    assert len(checked) > 300
    assert [sentence for path in checked for sentence in found(path)] == []


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ('"""The pipeline is told of it."""\n', "publish"),
        ("x = f'The value is no {kind}.'\n", "is not a"),
        ("# Read anew by whoever asks.\n", "again"),
    ],
)
def test_the_dialect_is_found_with_the_words_to_use(tmp_path: Path, text: str, instead: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(text)
    (sentence,) = found(path)
    assert "module.py:1" in sentence
    assert instead in sentence


def test_names_of_code_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("file.tell()\nnobody = 'There is no model m; it is no longer served.'\n")
    assert found(path) == []
