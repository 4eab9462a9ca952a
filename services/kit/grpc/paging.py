"""Page tokens of lists that page by the name or the number of their last item."""

from __future__ import annotations

import re

from services.kit.errors import FieldViolation, InvalidArgumentError

_WHY = "is none of ours: take it from next_page_token of the page before, or leave it out"


def checked_token(token: str, pattern: str) -> str:
    """The token, empty on the first page.

    Raises:
        InvalidArgumentError: it is no token of this list, whose tokens match `pattern` whole.
    """
    if token and not re.fullmatch(pattern, token, re.ASCII):
        raise InvalidArgumentError(
            f"page_token {_WHY}.", reason="INVALID_PAGE_TOKEN", violations=[FieldViolation("page_token", _WHY)]
        )
    return token


def checked_number(token: str, first: int) -> int:
    """The number that the token is; `first` on the first page.

    Raises:
        InvalidArgumentError: it is no token of this list.
    """
    return int(checked_token(token, r"\d{1,9}") or first)
