"""Names in lines of the tagged corpus."""

from __future__ import annotations

import pytest

from infra.stack.assets.people_daily import annotated


@pytest.mark.parametrize(
    ("line", "text", "names"),
    [
        ("主席/n  江/nr  泽民/nr  在/p  北京/ns", "主席江泽民在北京", [("江泽民", "PER"), ("北京", "LOC")]),
        # Two people with nothing between them.
        ("邓/nr  小平/nr  江/nr  泽民/nr", "邓小平江泽民", [("邓小平", "PER"), ("江泽民", "PER")]),
        ("克林顿/nr  李/nr  鹏/nr", "克林顿李鹏", [("克林顿", "PER"), ("李鹏", "PER")]),
        ("新华社/nt  北京/ns", "新华社北京", [("新华社", "ORG"), ("北京", "LOC")]),
        ("", "", []),
    ],
)
def test_names(line: str, text: str, names: list[tuple[str, str]]) -> None:
    found, spans = annotated(line)
    assert found == text
    assert [(found[span["start"] : span["end"]], span["label"]) for span in spans] == names
