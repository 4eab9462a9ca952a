"""Tokens of pages: ours go on, others are told."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from services.kit.errors import InvalidArgumentError
from services.kit.grpc.paging import checked_number, checked_token
from services.kit.ids import ID_PATTERN, new_id


def test_a_token_of_ours_is_the_place_to_go_on_from() -> None:
    name = f"runs/{new_id()}"
    assert checked_token(name, f"runs/{ID_PATTERN}") == name
    assert checked_token("", f"runs/{ID_PATTERN}") == ""
    assert (checked_number("12", 99), checked_number("", 99)) == (12, 99)


@pytest.mark.parametrize("token", ["runs/1", "x", "٣", "1' OR 1=1", "runs/" + "a" * 27, "1234567890"])
def test_another_token_is_refused_by_its_field(token: str) -> None:
    for call in (lambda: checked_token(token, f"runs/{ID_PATTERN}"), lambda: checked_number(token, 9)):
        with pytest.raises(InvalidArgumentError) as caught:
            call()
        assert [violation.field for violation in caught.value.violations] == ["page_token"]


def test_ids_sort_by_time_beyond_2039(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    years = [now, now + 0.002, now + 14 * 365.25 * 86400, now + 1000 * 365.25 * 86400]
    made = []
    for moment in years:
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        made.append(new_id())
    assert all(len(each) == 26 and earlier < each for earlier, each in pairwise(made))
