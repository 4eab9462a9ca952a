"""Addresses of sources: which forms of URI are supported. Nothing is resolved or opened here."""

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
# Rounds of percent-encoding that are decoded; a text that needs more is not an address that a person wrote.
_DECODINGS = 4


class UriRefusedError(ValueError):
    """A URI that cannot be a source; the message says what is wrong, without parts that could be secret."""


@dataclass(frozen=True, slots=True)
class SourceUri:
    """A parsed address: `host` is a host or bucket; `path` is a local path, a key, or path and query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def is_http(self) -> bool:
        """Whether it is fetched by HTTP, with or without TLS."""
        return self.scheme in ("http", "https")


def parse_uri(text: str) -> SourceUri:
    """Parses the URI of a source, or an absolute path.

    Raises:
        UriRefusedError: it is relative, has a protocol outside `PROTOCOLS`, chains file systems (`::`), contains
            `..`, or carries a user or password.
    """
    # An IPv6 address in brackets may contain '::' itself.
    _check_everywhere(_IPV6_HOST.sub(r"\1host", text))
    match = _SCHEME.match(text)
    if match is None:
        if not text.startswith("/"):
            raise UriRefusedError(f"{text[:200]!r} is a relative path; give an absolute path or a URL")
        return SourceUri("file", "", 0, text)
    scheme = match.group(1).lower()
    if scheme not in PROTOCOLS:
        raise UriRefusedError(f"the protocol {scheme[:32]!r} is not supported; use {', '.join(PROTOCOLS)}")
    if scheme == "file":
        return _file(text)
    if _UNPRINTABLE.search(text):
        raise UriRefusedError("a URL must not contain spaces, control characters or backslashes; percent-encode them")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UriRefusedError("it is not a valid URL; check host and port") from error
    if port == 0:
        raise UriRefusedError("port 0 cannot be asked; leave the port out or name another")
    if "@" in parts.netloc:
        raise UriRefusedError("it contains a user or a password; configure credentials in the service's settings")
    if scheme == "s3":
        if not _BUCKET.fullmatch(parts.netloc):
            raise UriRefusedError("an s3 URL must be s3://bucket/key, with a plain bucket name")
        return SourceUri("s3", parts.netloc, 0, text[len("s3://") + len(parts.netloc) :].lstrip("/"))
    if not host:
        raise UriRefusedError("it has no host")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return SourceUri(scheme, host.rstrip(".").lower(), port or {"http": 80, "https": 443}[scheme], path)


def check_pattern(pattern: str) -> None:
    """Checks the glob of a folder by the same rules.

    Raises:
        UriRefusedError: it breaks one.
    """
    _check_everywhere(pattern)
    if pattern.startswith("/"):
        raise UriRefusedError("a pattern is relative to the folder and must not begin with /")


def shown(uri: str) -> str:
    """A URI for logs and errors: without query and user, which may contain secrets."""
    match = _SCHEME.match(uri)
    if match is None or match.group(1).lower() not in ("http", "https", "s3"):
        return uri
    head, _, query = uri.partition("?")
    before, slashes, rest = head.partition("//")
    authority, slash, path = rest.partition("/")
    return f"{before}{slashes}{authority.rpartition('@')[2]}{slash}{path}" + ("?…" if query else "")


def _check_everywhere(text: str) -> None:
    """Checks for every form, also if percent-encoded, even repeatedly."""
    seen = text
    for _ in range(_DECODINGS):
        if _CONTROL.search(seen):
            raise UriRefusedError("it contains a control character")
        if "::" in seen:
            raise UriRefusedError("it contains '::', which chains file systems; give the file's own address")
        if ".." in re.split(r"[/\\]", seen.partition("?")[0]):
            raise UriRefusedError("it contains '..'; give the address that it leads to")
        decoded = unquote(seen)
        if decoded == seen:
            return
        seen = decoded
    raise UriRefusedError("it is percent-encoded several times; give the plain address")


def _file(text: str) -> SourceUri:
    rest = text[len("file:") :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise UriRefusedError("a file URL must name a file of this machine: file:///path")
        rest = slash + path
    if not rest.startswith("/"):
        raise UriRefusedError("a file URL must have an absolute path: file:///path")
    return SourceUri("file", "", 0, unquote(rest))
