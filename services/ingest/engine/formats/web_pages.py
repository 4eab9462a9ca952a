"""Pages of the web to records; no I/O. `services.ingest.adapters.crawl` decides which are fetched, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from services.ingest.domain.record import RawRecord, check_record, is_record_id
from services.ingest.engine.attributes import Attributes
from services.ingest.engine.file_format import FileFormat, ReadFile
from services.ingest.engine.html_page import Page, read_page
from services.ingest.engine.web_address import Scope, canonical, pattern_violation
from services.kit.ids import sha256_hex


@dataclass(frozen=True, slots=True)
class FetchedPage:
    """A page with its address, its content type, and when this content was fetched first."""

    address: str
    page: Page
    content_type: str
    fetch_time: datetime


@dataclass(frozen=True)
class WebPages(FileFormat[FetchedPage]):
    """Pages that a crawl reaches; a piece is a page."""

    more_uris: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    max_depth: int = 5
    max_pages: int = 10_000
    delay_s: float = 1.0
    no_links: bool = False
    no_sitemaps: bool = False
    field = "web_pages"
    unit = "page"

    @property
    def starts(self) -> list[str]:
        """Where it begins, as canonical addresses."""
        return list(dict.fromkeys(canonical(uri) for uri in (self.uri, *self.more_uris)))

    @property
    def scope(self) -> Scope:
        """What may be fetched."""
        return Scope(self.starts, self.allow, self.deny)

    def violations(self) -> Iterator[tuple[str, str]]:
        """See `FileFormat`."""
        wrong = list(super().violations())
        if not wrong and not canonical(self.uri):
            wrong.append(("uri", "must be a URL of http: or https:."))
        for number, uri in enumerate(self.more_uris):
            if not canonical(uri):
                wrong.append((f"more_uris[{number}]", "must be a URL of http: or https:, without a password."))
        for name, patterns in (("allow", self.allow), ("deny", self.deny)):
            found = [(f"{name}[{number}]", pattern_violation(pattern)) for number, pattern in enumerate(patterns)]
            wrong += [(place, message) for place, message in found if message]
        if not wrong:
            scope = self.scope
            outside = [uri for uri in self.starts if not scope.holds(uri)]
            wrong += [("allow", f"does not hold {uri}, where the crawl begins; add it.") for uri in outside]
        yield from wrong

    def split(self, file: ReadFile) -> Iterator[tuple[int, FetchedPage]]:
        """The one page of a file."""
        page = read_page(b"".join(file.chunks), self.uri)
        yield 0, FetchedPage(self.uri, page, "text/html", datetime.now(UTC))

    def record(self, source: str, file: ReadFile, piece: FetchedPage) -> RawRecord:
        """See `FileFormat`; the id is the address, or its digest where that is not a valid id."""
        attributes = Attributes()
        attributes.add("url", piece.address)
        for name, value in (("title", piece.page.title), ("language", piece.page.language)):
            if value:
                attributes.add(name, value)
        attributes.add("content_type", piece.content_type)
        attributes.add("fetch_time", piece.fetch_time.isoformat(timespec="seconds"))
        identity = piece.address if is_record_id(piece.address) else f"url_{sha256_hex(piece.address)[:32]}"
        record = RawRecord(source, piece.page.text, attributes.result(), identity, piece.fetch_time)
        check_record(record)
        return record

    def content(self, piece: FetchedPage) -> bytes:
        """See `FileFormat`."""
        return piece.page.text.encode("utf-8", "replace")


FORMAT = WebPages
