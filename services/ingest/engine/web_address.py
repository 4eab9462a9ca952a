"""Addresses of pages: one form for each, and which of them a crawl may fetch; no I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urljoin

import re2
from yarl import URL

from services.ingest.domain.source_uri import UriRefusedError, parse_uri

MAX_ADDRESS = 2048
_PATTERN = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(:[0-9]{1,5})?(/\S*)?")


def canonical(address: str, base: str = "") -> str:
    """The one form of a page's address: absolute, encoded alike, without the part after `#`.

    Empty for what cannot be fetched: other protocols, addresses with a password, and anything else.
    """
    try:
        made = URL(urljoin(base, address.strip())).with_fragment(None)
        text = str(made)
        if len(text) > MAX_ADDRESS or not parse_uri(text).is_http:
            return ""
    except (UriRefusedError, ValueError, TypeError, UnicodeError):
        return ""
    return text


def site(address: str) -> str:
    """Host of a canonical address, with the port where that is not the protocol's own."""
    return URL(address).host_port_subcomponent or ""


class Scope:
    """Which addresses a crawl may fetch."""

    def __init__(self, starts: Sequence[str], allow: Sequence[str], deny: Sequence[str]) -> None:
        """Takes canonical addresses and patterns that have no `pattern_violation`."""
        self._allow = _any_of(allow or [site(start) for start in starts])
        self._deny = _any_of(deny) if deny else None

    def holds(self, address: str) -> bool:
        """Whether a canonical address may be fetched."""
        url = URL(address)
        place = f"{url.host_port_subcomponent}{url.raw_path_qs}"
        return bool(self._allow.fullmatch(place)) and not (self._deny is not None and self._deny.fullmatch(place))


def pattern_violation(pattern: str) -> str:
    """What is wrong with a pattern; empty if nothing is."""
    if "://" in pattern:
        return f"{pattern[:80]!r} begins with a protocol; write HOST/PATH, such as docs.example.com/guide/*."
    if not _PATTERN.fullmatch(pattern):
        return f"{pattern[:80]!r} is not HOST/PATH in small letters, such as docs.example.com/guide/* or *.example.com."
    return ""


def _any_of(patterns: Sequence[str]) -> Any:
    # RE2 takes time that is linear in the address, however many stars there are.
    options = re2.Options()
    options.log_errors = False
    return re2.compile("|".join(map(_expression, patterns)), options)


def _expression(pattern: str) -> str:
    host, slash, path = pattern.partition("/")
    below = r"(?:[^/]*\.)" if host.startswith("*.") else ""
    rest = ".*".join(map(re.escape, path.split("*"))) if slash else ".*"
    return f"(?:{below}{re.escape(host.removeprefix('*.'))}/{rest})"
