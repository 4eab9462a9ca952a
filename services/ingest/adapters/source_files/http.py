"""One file over HTTP or HTTPS. Redirects are followed if they pass the same checks as the address itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urljoin

import aiohttp

from services.ingest.adapters.source_files.interruptible import InterruptibleLoop
from services.ingest.adapters.source_files.port import (
    CHUNK_BYTES,
    FoundFile,
    ReadLimits,
    forbidden,
    wrong,
)
from services.ingest.adapters.source_files.roots import SourceRoots
from services.ingest.adapters.source_files.unpacking import unpacked
from services.ingest.app.interrupt import Interrupt
from services.ingest.domain.source_import import SourceSpec
from services.ingest.domain.source_uri import UriRefusedError, parse_uri, shown
from services.ingest.engine.file_format import BadContentError
from services.kit.network_wall import NetworkWall

T = TypeVar("T")

_GZIP = ("gzip", "x-gzip")
REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAXREDIRECTS = 5
# At least this much must arrive within the timeout, so that a server that sends a byte a minute counts as silent.
_MIN_BYTES = 64 * 1024


class HttpFile:
    """Implements `port.FilePlace` for a single URL; HTTP itself has no folders."""

    def __init__(
        self, spec: SourceSpec, roots: SourceRoots, wall: NetworkWall, limits: ReadLimits, interrupt: Interrupt
    ) -> None:
        self._spec = spec
        self._url = spec.kind.uri.partition("#")[0]
        self._roots = roots
        self._wall = wall
        self._limits = limits
        self._waiting = InterruptibleLoop(interrupt)
        self._etag = ""

    def match(self) -> Mapping[str, FoundFile]:
        """See the port."""
        found = self._run(self._look())
        self._etag = found.etag
        return {self._url: found}

    def below(self, path: str) -> str:
        """See the port; without the query, so that the name shows what the file is."""
        return PurePosixPath(unquote(parse_uri(path).path.partition("?")[0])).name

    def location(self, path: str) -> str:
        """See the port."""
        return shown(path)

    def close(self) -> None:
        """See the port."""
        self._waiting.close()

    @contextmanager
    def open(self, path: str) -> Iterator[Iterator[bytes]]:
        """See the port."""
        answer = self._response(path)
        response = self._run(answer.__aenter__())
        try:
            etag = _strong_etag(response)
            if self._etag and etag and etag != self._etag:
                raise BadContentError("SOURCE_CHANGED", "the file changed while it was imported; import it again")
            chunks = self._chunks(response)
            # A compressed file whose server declares the compression as transfer encoding is used as it is.
            if encoding_of(response) in _GZIP and not self.below(path).endswith(".gz"):
                chunks = unpacked(chunks, ".gz", self._limits)
            yield chunks
        finally:
            self._waiting.finish(answer.__aexit__(None, None, None))

    def _chunks(self, response: aiohttp.ClientResponse) -> Iterator[bytes]:
        while chunk := self._run(fill(response)):
            yield chunk

    async def _look(self) -> FoundFile:
        async with self._response(self._url) as response:
            length = response.headers.get("Content-Length", "")
            return FoundFile(int(length) if length.isdecimal() else None, _strong_etag(response))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            return self._waiting.run(
                coroutine, self._limits.connect_s + self._limits.silence_s, shown(self._spec.kind.uri)
            )
        except (aiohttp.ClientError, OSError) as error:
            if self._wall.refused:
                message = (
                    f"{shown(self._spec.kind.uri)} leads to an address or a port that sources may not use. Allowed are "
                    "public addresses at the ports 80 and 443, and those that the operator adds to "
                    "TIDEMILL_SOURCE_HOSTS."
                )
                raise forbidden(self._spec, message) from error
            raise

    @asynccontextmanager
    async def _response(self, url: str) -> AsyncIterator[aiohttp.ClientResponse]:
        async with self._session() as session:
            for _ in range(_MAXREDIRECTS + 1):
                self._check(url)
                async with session.get(url, allow_redirects=False, headers=self._headers(url)) as response:
                    if response.status not in REDIRECTS:
                        self._check_answer(response)
                        yield response
                        return
                    target = urljoin(url, response.headers.get("Location", ""))
                if url.startswith("https:") and not target.startswith("https:"):
                    raise forbidden(self._spec, f"{shown(url)} redirects from https to another protocol.")
                url = target
        raise OSError(f"{shown(self._url)} redirects more than {_MAXREDIRECTS} times")

    def _headers(self, url: str) -> Mapping[str, str]:
        """Headers of a request beside those of every one."""
        return {}

    def _check(self, url: str) -> None:
        try:
            parsed = parse_uri(url)
        except UriRefusedError as error:
            raise forbidden(self._spec, f"it redirects to an address that cannot be imported: {error}") from error
        if not parsed.is_http:
            raise forbidden(self._spec, f"it redirects to {parsed.scheme}://, which is not supported")
        if not self._roots.allows_http(url):
            raise forbidden(
                self._spec,
                f"{shown(url)} is not below any of the URLs in TIDEMILL_SOURCE_ROOTS; ask the operator to add it.",
            )

    def _check_answer(self, response: aiohttp.ClientResponse) -> None:
        if response.status in (404, 410):
            raise wrong(self._spec, f"{shown(str(response.url))} does not exist; correct the URL.")
        if response.status != 200:
            raise OSError(f"{shown(str(response.url))} answers {response.status}")
        if encoding_of(response) not in ("identity", *_GZIP):
            raise OSError(f"{shown(str(response.url))} compresses the file, though it was requested uncompressed")

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        connector = aiohttp.TCPConnector(
            resolver=self._wall.resolver(), socket_factory=self._wall.socket, use_dns_cache=False, force_close=True
        )
        timeout = aiohttp.ClientTimeout(
            total=None, connect=self._limits.connect_s, sock_connect=self._limits.connect_s, sock_read=None
        )
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            # Without the proxy and the passwords in this process's environment.
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": "tidemill-ingest", "Accept-Encoding": "identity"},
        ) as session:
            yield session


async def fill(response: aiohttp.ClientResponse) -> bytes:
    """The next piece of a body, large enough that it arrives within the timeout of silence; empty at the end."""
    parts, size = [], 0
    while size < _MIN_BYTES and (part := await response.content.read(CHUNK_BYTES)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def encoding_of(response: aiohttp.ClientResponse) -> str:
    """How a body is compressed for its way; `identity` if it is not."""
    return response.headers.get("Content-Encoding", "").strip().lower() or "identity"


def _strong_etag(response: aiohttp.ClientResponse) -> str:
    etag = response.headers.get("ETag", "")
    return "" if etag.startswith("W/") else etag
