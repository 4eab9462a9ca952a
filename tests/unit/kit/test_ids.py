"""Identifiers: they sort by the time at which they were made."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from services.kit.ids import new_id, parts_of_record_name, record_name


def test_ids_sort_by_time_beyond_2039(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    years = [now, now + 0.002, now + 14 * 365.25 * 86400, now + 1000 * 365.25 * 86400]
    made = []
    for moment in years:
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        made.append(new_id())
    assert all(len(each) == 26 and earlier < each for earlier, each in pairwise(made))


def test_a_record_is_found_by_its_name() -> None:
    assert parts_of_record_name(record_name("a.b", "answers/1/records/2")) == ("a.b", "answers/1/records/2")
    for other in ("7", "sources/a", "sources/records/7", "a/records/7"):
        assert parts_of_record_name(other) is None
