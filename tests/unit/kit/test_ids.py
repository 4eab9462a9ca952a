"""Identifiers: they sort by the time at which they were made."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from services.kit.ids import new_id


def test_ids_sort_by_time_beyond_2039(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    years = [now, now + 0.002, now + 14 * 365.25 * 86400, now + 1000 * 365.25 * 86400]
    made = []
    for moment in years:
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        made.append(new_id())
    assert all(len(each) == 26 and earlier < each for earlier, each in pairwise(made))
