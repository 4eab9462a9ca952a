"""Addresses of sources: which forms of URI are read at all. Nothing is resolved or opened here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

PROTOCOLS = ("file", "https", "http", "s3")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\x9f\\]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_IPV6_HOST = re.compile(r"^(https?://)\[[0-9a-f:.]+\]", re.IGNORECASE)
# So often may a text be percent-encoded over and over; what needs more is not an address that a person wrote.
_DECODINGS = 4


class UriRefusedError(ValueError):
    """A URI that no source is read from; the message names what is wrong and never what could be a secret."""


@dataclass(frozen=True, slots=True)
class SourceUri:
    """An address in parts: `host` is a host or a bucket, `path` a path of this machine, a key, or path and query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def is_http(self) -> bool:
        """Whether it is fetched by HTTP, with or without TLS."""
        return self.scheme in ("http", "https")


def parse_uri(text: str) -> SourceUri:
    """The parts of a source's URI, or of an absolute path.

    Raises:
        UriRefusedError: it is relative, has another protocol than `PROTOCOLS`, chains file systems (`::`), climbs
            (`..`) or carries a user or a password.
    """
    # An IPv6 address in its brackets may hold '::' itself.
    _check_everywhere(_IPV6_HOST.sub(r"\1host", text))
    match = _SCHEME.match(text)
    if match is None:
        if not text.startswith("/"):
            raise UriRefusedError(
                f"{text[:200]!r} is relative to nothing the service knows; give an absolute path or a URL"
            )
        return SourceUri("file", "", 0, text)
    scheme = match.group(1).lower()
    if scheme not in PROTOCOLS:
        raise UriRefusedError(f"the protocol {scheme[:32]!r} is not read; {', '.join(PROTOCOLS)} are")
    if scheme == "file":
        return _file(text)
    if _UNPRINTABLE.search(text):
        raise UriRefusedError("a URL has no spaces, control characters or backslashes; percent-encode them")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UriRefusedError("it is not a valid URL; check host and port") from error
    if "@" in parts.netloc:
        raise UriRefusedError("it carries a user or a password; give the service its credentials in its own settings")
    if scheme == "s3":
        if not _BUCKET.fullmatch(parts.netloc):
            raise UriRefusedError("an s3 URL is s3://bucket/key, with the bucket's plain name")
        return SourceUri("s3", parts.netloc, 0, text[len("s3://") + len(parts.netloc) :].lstrip("/"))
    if not host:
        raise UriRefusedError("it names no host")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return SourceUri(scheme, host.rstrip(".").lower(), port or {"http": 80, "https": 443}[scheme], path)


def check_pattern(pattern: str) -> None:
    """Holds the glob of a folder against the same rules.

    Raises:
        UriRefusedError: it breaks one.
    """
    _check_everywhere(pattern)
    if pattern.startswith("/"):
        raise UriRefusedError("a pattern is relative to the folder and does not begin with /")


def shown(uri: str) -> str:
    """A URI as it may stand in a log or an error: without query and user, which may hold secrets."""
    match = _SCHEME.match(uri)
    if match is None or match.group(1).lower() not in ("http", "https", "s3"):
        return uri
    head, _, query = uri.partition("?")
    before, slashes, rest = head.partition("//")
    authority, slash, path = rest.partition("/")
    return f"{before}{slashes}{authority.rpartition('@')[2]}{slash}{path}" + ("?…" if query else "")


def _check_everywhere(text: str) -> None:
    """What holds of every form, also where it is percent-encoded, and encoded again."""
    seen = text
    for _ in range(_DECODINGS):
        if _CONTROL.search(seen):
            raise UriRefusedError("it holds a control character")
        if "::" in seen:
            raise UriRefusedError("it holds '::', which chains file systems; give the file's own address")
        if ".." in re.split(r"[/\\]", seen.partition("?")[0]):
            raise UriRefusedError("it holds '..'; give the address that it leads to")
        decoded = unquote(seen)
        if decoded == seen:
            return
        seen = decoded
    raise UriRefusedError("it is percent-encoded many times over; give the plain address")


def _file(text: str) -> SourceUri:
    rest = text[len("file:") :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise UriRefusedError("a file URL names a file of this machine: file:///path")
        rest = slash + path
    if not rest.startswith("/"):
        raise UriRefusedError("a file URL has an absolute path: file:///path")
    return SourceUri("file", "", 0, unquote(rest))
