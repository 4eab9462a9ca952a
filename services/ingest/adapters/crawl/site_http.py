"""Requests of a crawl: one address at a time, with limits of size, time and decompression."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import aiohttp

from services.ingest.adapters.patient_http import BusyError, PatientHttp
from services.ingest.adapters.source_files.http import REDIRECTS, encoding_of, fill
from services.ingest.adapters.source_files.port import CHUNK_BYTES, ReadLimits
from services.ingest.adapters.source_files.roots import SourceRoots
from services.ingest.adapters.source_files.unpacking import unpacked
from services.ingest.app.interrupt import Interrupt
from services.ingest.domain.source_import import SourceSpec
from services.ingest.engine.file_format import BadContentError
from services.ingest.engine.web_address import canonical, site
from services.kit.network_wall import NetworkWall

ATTEMPTS = 3
"""How often an address is asked that fails in a way that may pass."""
MAX_HOPS = 5
"""Redirects that are followed one after another."""
_ROBOTS_BYTES = 512 * 1024
_PAGE_S = 120.0
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Fetched:
    """What an address answered; the content is empty unless the status is 200."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    content_type: str
    charset: str


class SiteHttp(PatientHttp):
    """Fetches addresses for one crawl, for one thread."""

    def __init__(
        self, spec: SourceSpec, roots: SourceRoots, wall: NetworkWall, limits: ReadLimits, interrupt: Interrupt
    ) -> None:
        super().__init__(spec, roots, wall, limits, interrupt)
        self._left = limits.import_bytes

    def get(self, address: str, headers: Mapping[str, str], limit: int, *, cut: bool = False) -> Fetched:
        """What an address answers, without following redirects.

        Args:
            address: canonical.
            headers: of the request.
            limit: bytes of content, decompressed.
            cut: whether a longer content is cut; an error else.

        Raises:
            BadContentError: the content is too large, too slow or compressed in an unsupported way.
            BusyError: the site will answer later.
            PermissionDeniedError: it must not be fetched.
        """
        self._check(address)
        self._wall.refused = False
        with self._asked(address, headers) as response:
            if response.status != 200:
                self._check_busy(response)
                return Fetched(response.status, response.headers, b"", "", "")
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            charset = response.charset or ""
            if kind.startswith(("image/", "video/", "audio/", "font/")):
                return Fetched(200, response.headers, b"", kind, charset)
            content = self._content(response, limit, cut=cut)
            return Fetched(200, response.headers, content, kind, charset)

    @contextmanager
    def _asked(self, address: str, headers: Mapping[str, str]) -> Iterator[aiohttp.ClientResponse]:
        opened = self._session()
        session = self._run(opened.__aenter__())
        try:
            answer = session.get(address, allow_redirects=False, headers=headers)
            response = self._run(answer.__aenter__())
            try:
                yield response
            finally:
                self._waiting.finish(answer.__aexit__(None, None, None))
        finally:
            self._waiting.finish(opened.__aexit__(None, None, None))

    def _content(self, response: aiohttp.ClientResponse, limit: int, *, cut: bool) -> bytes:
        packed = encoding_of(response)
        if packed not in ("identity", "gzip", "x-gzip"):
            raise BadContentError("PACKING_NOT_READ", f"it is compressed as {packed[:40]}, which was not asked for")
        chunks = self._arriving(response)
        first = next(chunks, b"")
        chunks = _after_first(first, chunks)
        # Beyond the limit by more than a chunk, so that the limit itself is found first.
        bounds = replace(self._limits, file_bytes=limit + 4 * CHUNK_BYTES)
        if packed != "identity" or first.startswith(_GZIP_MAGIC):
            chunks = unpacked(chunks, ".gz", bounds)
        parts, size = [], 0
        for chunk in chunks:
            size += len(chunk)
            if size > limit and not cut:
                raise BadContentError("PAGE_TOO_LARGE", f"it has more than {limit} bytes")
            parts.append(chunk)
            if size > limit:
                break
        self._left -= size
        if self._left < 0:
            allowed = self._limits.import_bytes
            raise BadContentError("SOURCE_TOO_LARGE", f"more than {allowed} bytes; see TIDEMILL_SOURCE_IMPORT_BYTES")
        return b"".join(parts)[:limit]

    def _arriving(self, response: aiohttp.ClientResponse) -> Iterator[bytes]:
        until = time.monotonic() + _PAGE_S
        while chunk := self._run(fill(response)):
            if time.monotonic() > until:
                raise BadContentError("PAGE_TOO_SLOW", f"it takes longer than {_PAGE_S:g} s")
            yield chunk

    def robots(self, address: str) -> str:
        """The robots.txt at an address. RFC 9309: without one all is allowed; while it fails, nothing is."""
        try:
            for _ in range(MAX_HOPS):
                found = self._patiently(partial(self._get_robots, address), ATTEMPTS)
                if found.status not in REDIRECTS:
                    break
                address = canonical(found.headers.get("Location", ""), address)
                if not address:
                    return ""
        except (BusyError, aiohttp.ClientError, OSError) as error:
            message = f"{site(address)} does not say what robots.txt allows ({type(error).__name__}: {error})"
            raise BadContentError("SITE_UNAVAILABLE", message) from error
        return found.content.decode("utf-8", "replace") if found.status == 200 else ""

    def _get_robots(self, address: str) -> Fetched:
        return self.get(address, {"Accept": "text/plain"}, _ROBOTS_BYTES, cut=True)


def _after_first(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest
