"""Every test that the tables of boundaries name exists, and `make faults` runs it."""

from __future__ import annotations

import re

import pytest

from tests.boundaries import DOCUMENTS, ROOT, Named, is_boundary, mark, named, named_in


def test_every_test_that_is_named_exists() -> None:
    assert {each.document for each in named()} == {document.name for document in DOCUMENTS}
    missing = [
        each
        for each in named()
        if not (ROOT / each.file).exists()
        or (each.test and f"def {each.test}(" not in (ROOT / each.file).read_text("utf-8"))
    ]
    assert not missing, missing


def test_names_are_read_as_people_read_them() -> None:
    text = (
        "| a | `tests/unit/kit/test_a.py`, `test_b.py::test_x` |\n"
        "| `tests/contract/answers/` |\n| b | `test_c.py::test_y`, `…::test_z` |\n| `::test_w` |"
    )
    assert named_in(text) == [
        Named("", "tests/unit/kit/test_a.py", None),
        Named("", "tests/unit/kit/test_b.py", "test_x"),
        Named("", "tests/contract/answers/", None),
        Named("", "tests/faults/test_c.py", "test_y"),
        Named("", "tests/faults/test_c.py", "test_z"),
        Named("", "tests/faults/test_c.py", "test_w"),
    ]


def test_no_name_of_a_test_is_overlooked() -> None:
    """Another way of writing one would neither be checked nor run."""
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        written = re.findall(r"`([^`\n]*test_[^`\n]*)`", text)
        assert len([each for each in named_in(text) if not each.file.endswith("/")]) == len(written), document


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("tests/faults/test_kills.py::test_any", True),
        ("tests/unit/test_deployments.py::test_any[a]", True),
        ("tests/unit/gateway/test_table.py::test_what_is_internal_is_not_public", True),
        ("tests/unit/gateway/test_table.py::test_what_is_internal_is_not_public[x]", True),
        ("tests/unit/gateway/test_table.py::test_other", False),
        ("tests/contract/answers/test_any.py::test_any", True),
        ("tests/unit/test_words.py::test_any", False),
    ],
)
def test_what_is_named_is_a_fault_test(test: str, expected: bool) -> None:
    assert is_boundary(test) == expected


def test_the_mark_is_what_make_faults_selects_by(request: pytest.FixtureRequest) -> None:
    item = request.node
    mark([item])
    assert item.get_closest_marker("faults") is None
    recipe = (ROOT / "Makefile").read_text("utf-8").partition("\nfaults:")[2].partition("\n\n")[0]
    assert re.search('-m "faults or slow or hypothesis" .*tests/unit', recipe)
    assert re.search('-m "faults or slow" .*tests/contract .*tests/integration ', recipe)
    assert "tests/faults" in recipe
