"""Pages of List calls; a page token is the name or the number of the last item."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.kit.errors import invalid_page_token
from services.kit.ids import NEWEST

DEFAULT_SIZE = 50
"""Items of a page whose request names no size."""

NUMBER = r"\d{1,9}"
"""Pattern of the tokens of lists that page by number."""

T = TypeVar("T")


class ListRequest(Protocol):
    """What every List request has."""

    @property
    def page_size(self) -> int:
        """Maximum number of items; `DEFAULT_SIZE` when zero."""

    @property
    def page_token(self) -> str:
        """`next_page_token` of the page before; empty for the first page."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Items, and the token of the next page, empty at the end."""

    items: Sequence[T]
    next_token: str


async def read_page(
    request: ListRequest,
    pattern: str,
    read: Callable[[str, int], Awaitable[Sequence[T]]],
    token_of: Callable[[T], str],
) -> Page[T]:
    """One page.

    Args:
        request: what is asked for.
        pattern: regular expression that a token of this list matches whole.
        read: returns at most that many items after a token, which is empty for the first page.
        token_of: the token of the page that begins after an item.

    Raises:
        InvalidArgumentError: the token is not one of this list.
    """
    size = request.page_size or DEFAULT_SIZE
    # One more item than requested shows whether there is a next page.
    found = await read(checked_token(request.page_token, pattern), size + 1)
    return Page(found[:size], token_of(found[size - 1]) if len(found) > size else "")


def checked_token(token: str, pattern: str) -> str:
    """The token; empty for the first page.

    Raises:
        InvalidArgumentError: it is not a token of this list, whose tokens match `pattern` whole.
    """
    if token and not re.fullmatch(pattern, token, re.ASCII):
        raise invalid_page_token("is not one of this list: take it from next_page_token of the page before, or omit it")
    return token


def number_of(token: str) -> int:
    """The number in a checked token; for the first page, a number above all others."""
    return int(token) if token else NEWEST
