"""The reconciler itself: it finds each kind of difference, and reports nothing else."""

from __future__ import annotations

from pathlib import Path

from tests.faults.reconciler import Ledger, compare, digest

ONE, TWO = digest("one"), digest("two")


def test_what_is_there_once_is_sound() -> None:
    finding = compare("topic", {"a": ONE, "b": TWO}, [("a", ONE), ("b", TWO)])
    assert finding.sound
    assert str(finding) == "topic: 2 acknowledged, all there once"


def test_each_fault_is_named_with_its_ids() -> None:
    finding = compare("topic", {"a": ONE, "b": TWO, "c": ONE}, [("a", ONE), ("a", ONE), ("c", TWO), ("x", ONE)])
    assert not finding.sound
    assert finding.lost == ("b",)
    assert finding.phantom == ("x",)
    assert finding.duplicate == ("a",)
    assert finding.altered == ("c",)


def test_what_got_no_answer_may_be_there_or_not_but_not_twice() -> None:
    assert compare("topic", {}, [("a", ONE)], uncertain={"a": ONE, "b": ONE}).sound
    assert compare("topic", {}, [("a", ONE), ("a", ONE)], uncertain={"a": ONE}).duplicate == ("a",)


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.sent("a", "one")
    ledger.accepted("a", "one")
    ledger.sent("b", "two")
    read = Ledger.read(tmp_path / "ledger")
    assert read.acknowledged == {"a": ONE}
    assert read.uncertain == {"a": ONE, "b": TWO}
