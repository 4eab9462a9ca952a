"""Reads a JSON API page by page, behind the walls of HTTP sources; retries what the server says will pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import aiohttp

from services.ingest.adapters.patient_http import PatientHttp
from services.ingest.adapters.source_files.port import ReadLimits
from services.ingest.adapters.source_files.roots import SourceRoots
from services.ingest.adapters.source_files.secrets import Secret, SourceSecrets
from services.ingest.app.interrupt import Interrupt
from services.ingest.app.ports import Position
from services.ingest.domain.record import RawRecord, RecordRefusedError, Refusal
from services.ingest.domain.source_import import SourceSpec
from services.ingest.domain.source_uri import shown
from services.ingest.engine.file_format import BadContentError, ReadFile
from services.ingest.engine.formats.rest_api import RestApi
from services.kit.network_wall import NetworkWall

_ATTEMPTS = 6
_PAGE_BYTES = 64 * 1024 * 1024
_MAX_PAGES = 100_000


class RestPages(PatientHttp):
    """The pages of one API, for one thread."""

    def __init__(
        self,
        spec: SourceSpec,
        kind: RestApi,
        roots: SourceRoots,
        wall: NetworkWall,
        limits: ReadLimits,
        interrupt: Interrupt,
        secrets: SourceSecrets,
    ) -> None:
        super().__init__(spec, roots, wall, limits, interrupt)
        self._kind = kind
        self._secret: Secret | None = secrets.named(kind.secret) if kind.secret else None

    def check(self) -> None:
        """Checks the address without a request.

        Raises:
            PermissionDeniedError: it must not be fetched.
        """
        self._check(self._url)

    def pieces(self, position: Position) -> Iterator[RawRecord | Refusal]:
        """Records and refusals of all items, or of those since the position.

        Raises:
            BadContentError: a page is not what the options say; names it.
            OSError: the server does not answer, also not when asked again.
        """
        kind, since, read, left = self._kind, position.begin.get("since"), 0, self._limits.import_bytes
        seen: set[str] = set()
        newest, complete = since, False
        # Items may come in any order: until all were taken, nothing may be left out by the next import.
        position.reached = lambda: {"since": newest} if complete and newest is not None else position.begin
        url = kind.first(since)
        while url:
            if url in seen or len(seen) == _MAX_PAGES:
                raise BadContentError("PAGES_WITHOUT_END", f"{shown(url)} leads to itself, or the pages have no end")
            seen.add(url)
            content, link = self._page(url)
            left -= len(content)
            if left < 0:
                limit = self._limits.import_bytes
                raise BadContentError("SOURCE_TOO_LARGE", f"more than {limit} bytes; see TIDEMILL_SOURCE_IMPORT_BYTES")
            try:
                page, items = kind.page(content)
                for item in items if kind.incremental else ():
                    newest = kind.later(newest, item)
                following = kind.following(url, link, page, items, read + len(items))
            except BadContentError as error:
                raise BadContentError(error.reason, f"page {len(seen)} ({shown(url)}): {error.message}") from error
            yield from self._records(url, items, read)
            read += len(items)
            url = following
        complete = True

    def _records(self, url: str, items: Any, read: int) -> Iterator[RawRecord | Refusal]:
        file = ReadFile(shown(url), "", ())
        for number, item in enumerate(items, read + 1):
            try:
                yield self._kind.record(self._spec.source, file, item)
            except RecordRefusedError as error:
                yield Refusal(f"{shown(url)}: item {number}", error.reason, error.message, self._kind.content(item))

    def _page(self, url: str) -> tuple[bytes, str]:
        """The content of a page, and where its `Link` header leads; retried while the server is busy."""
        return self._patiently(lambda: self._run(self._fetch(url)), _ATTEMPTS)

    async def _fetch(self, url: str) -> tuple[bytes, str]:
        async with self._response(url) as response:
            parts, size = [], 0
            async for part in response.content.iter_chunked(1 << 16):
                size += len(part)
                if size > _PAGE_BYTES:
                    raise BadContentError(
                        "SOURCE_TOO_LARGE", f"{shown(url)} has more than {_PAGE_BYTES} bytes; ask for smaller pages"
                    )
                parts.append(part)
            link = response.links["next"].get("url", "") if "next" in response.links else ""
            return b"".join(parts), str(link)

    def _headers(self, url: str) -> Mapping[str, str]:
        own = self._secret.headers(url) if self._secret else {}
        return {"Accept": "application/json", **own}

    def _check_answer(self, response: aiohttp.ClientResponse) -> None:
        where = shown(str(response.url))
        self._check_busy(response)
        if response.status in (401, 403):
            named = f"the secret {self._kind.secret!r}" if self._secret else "no secret"
            sent = named if self._headers(str(response.url)).keys() - {"Accept"} else "no secret"
            raise OSError(f"{where} answers {response.status}; {sent} was sent")
        if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            raise OSError(f"{where} compresses the page, though it was requested uncompressed")
        super()._check_answer(response)
