"""Page tokens: they contain where the next page begins and a digest of the search."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

from services.kit.errors import invalid_page_token
from services.kit.ids import sha256_hex


def encode_token(after: Sequence[str], search: Sequence[str]) -> str:
    """A token.

    Args:
        after: sort values of the last hit of this page.
        search: the parameters of the search; the token is only valid for an equal search.
    """
    text = json.dumps([_seal(after, search), *after], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_token(token: str, search: Sequence[str]) -> tuple[str, ...]:
    """The sort values in a token.

    Raises:
        InvalidArgumentError: the token is not valid for this search.
    """
    try:
        value = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except ValueError:
        value = None
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(part, str) for part in value):
        raise invalid_page_token("is not a token of this search")
    seal, *after = value
    if seal != _seal(after, search):
        raise invalid_page_token(
            "belongs to another search: repeat it with the same query and times, or start without a token"
        )
    return tuple(after)


def _seal(after: Sequence[str], search: Sequence[str]) -> str:
    return sha256_hex(*after, *search)[:12]
