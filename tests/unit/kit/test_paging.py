"""Page tokens: ours continue a list, others are refused."""

from __future__ import annotations

import pytest

from services.kit.errors import InvalidArgumentError
from services.kit.grpc.paging import NUMBER, checked_token, number_of
from services.kit.ids import ID_PATTERN, new_id


def test_a_token_of_ours_is_the_place_to_continue_from() -> None:
    name = f"runs/{new_id()}"
    assert checked_token(name, f"runs/{ID_PATTERN}") == name
    assert checked_token("", f"runs/{ID_PATTERN}") == ""
    assert number_of(checked_token("12", NUMBER)) == 12
    assert number_of(checked_token("", NUMBER)) > 10**9


@pytest.mark.parametrize("token", ["runs/1", "x", "٣", "1' OR 1=1", "runs/" + "a" * 27, "1234567890"])
def test_another_token_is_refused_by_its_field(token: str) -> None:
    for pattern in (f"runs/{ID_PATTERN}", NUMBER):
        with pytest.raises(InvalidArgumentError) as caught:
            checked_token(token, pattern)
        assert [violation.field for violation in caught.value.violations] == ["page_token"]
