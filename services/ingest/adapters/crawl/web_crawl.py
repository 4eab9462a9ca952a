"""Crawls a site behind the walls of HTTP sources: an address at a time, the nearest ones first.

Each answer is kept before its record is given, so a process that continues the import gives the records of what was
fetched, and fetches the rest. A page that does not answer keeps the record that it had; a site that does not answer
fails the import, for what is gone from it is not known.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

import aiohttp

from services.ingest.adapters.crawl.page_process import PageProcess
from services.ingest.adapters.crawl.page_store import Answer, Crawl, SqlPageStore, Target
from services.ingest.adapters.crawl.site_http import ATTEMPTS, MAX_HOPS, Fetched, SiteHttp
from services.ingest.adapters.crawl.site_rules import SiteRules
from services.ingest.adapters.source_files.http import REDIRECTS
from services.ingest.adapters.source_files.port import ReadLimits
from services.ingest.adapters.source_files.roots import SourceRoots
from services.ingest.app.interrupt import Interrupt
from services.ingest.app.ports import Position
from services.ingest.domain.record import RawRecord, RecordRefusedError, Refusal
from services.ingest.domain.source_import import SourceSpec
from services.ingest.domain.source_uri import shown
from services.ingest.engine.file_format import BadContentError, ReadFile
from services.ingest.engine.formats.web_pages import FetchedPage, WebPages
from services.ingest.engine.html_page import Page
from services.ingest.engine.web_address import canonical, site
from services.kit.errors import PermissionDeniedError
from services.kit.network_wall import NetworkWall
from services.kit.retrying import call_with_retries

T = TypeVar("T")

logger = logging.getLogger(__name__)

_FAILURES_IN_A_ROW = 5
_PAGE_BYTES = 8 * 1024 * 1024
_SITEMAP_BYTES = 50 * 1024 * 1024
_PAGES = ("text/html", "application/xhtml+xml", "text/plain", "")
# Raised whenever equal bytes give other records: what sites keep unchanged is then fetched again.
_READER = f"1/{version('trafilatura')}"


class WebCrawl(SiteHttp):
    """One crawl of one source, for one thread."""

    def __init__(
        self,
        spec: SourceSpec,
        kind: WebPages,
        roots: SourceRoots,
        wall: NetworkWall,
        limits: ReadLimits,
        interrupt: Interrupt,
        store: SqlPageStore,
    ) -> None:
        super().__init__(spec, roots, wall, limits, interrupt)
        self._kind, self._store, self._interrupt = kind, store, interrupt
        self._scope = kind.scope
        self._rules = SiteRules(self.robots, kind.delay_s)
        self._reader = PageProcess(interrupt)
        self._stop = threading.Event()
        self._failures: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def check(self) -> None:
        """Checks the addresses without a request.

        Raises:
            PermissionDeniedError: one must not be fetched.
        """
        for start in self._kind.starts:
            self._check(start)

    def close(self) -> None:
        """See the port."""
        self._reader.close()
        super().close()

    def pieces(self, position: Position) -> Iterator[RawRecord | Refusal]:
        """Records and refusals of all pages.

        Raises:
            BadContentError: a site does not answer, or there is no page.
            PermissionDeniedError: a first page must not be fetched.
        """
        crawl, most = Crawl(self._spec.origin, position.import_name), self._kind.max_pages
        with self._interrupt.then(self._stop.set):
            complete = self._kept(lambda: self._store.add(crawl, self._begin(), most))
            given = 0
            # What this import fetched before its process died.
            for target, answer in self._store.done(crawl):
                for piece in self._of(target, answer):
                    given += 1
                    yield piece
            while (found := self._kept(lambda: self._store.next(crawl))) is not None:
                target, earlier = found
                answer, targets = self._visit(target, earlier)
                complete &= self._kept(partial(self._store.settle, crawl, target, answer, targets, most))
                if not complete:
                    position.cut = "max_pages"
                for piece in self._of(target, answer):
                    given += 1
                    yield piece
            self._kept(lambda: self._store.finish(crawl))
        said = ", ".join(f"{count} {what}" for what, count in sorted(self._outcomes.items()))
        logger.info("the crawl of %s is complete: %s", shown(self._url), said)
        if not given and not self._spec.may_be_empty:
            seen = "; ".join(f"{what}: {shown(where)}" for what, where in self._first.items())
            raise BadContentError("EMPTY_SOURCE", f"no page with text was found ({seen})")

    def _kept(self, action: Callable[[], T]) -> T:
        return call_with_retries(action, "a crawl", self._stop)

    def _begin(self) -> list[Target]:
        starts = [Target(start) for start in self._kind.starts]
        if self._kind.no_sitemaps:
            return starts
        sites = {site(start.address): start.address for start in starts}
        named = [
            Target(sitemap, is_sitemap=True)
            for address in sites.values()
            for sitemap in self._rules.sitemaps(address) or [canonical("/sitemap.xml", address)]
        ]
        return starts + [target for target in named if target.address not in self._kind.starts]

    # What becomes of one address.

    def _visit(self, target: Target, earlier: Answer) -> tuple[Answer, list[Target]]:
        """What an address answers, and what is to be fetched because of it."""
        try:
            if not self._rules.allows(target.address):
                return self._outcome("disallowed by robots.txt", target), []
            fetched = self._fetch(target, earlier)
            answer, found = self._judged(target, earlier, fetched)
        except PermissionDeniedError as error:
            if target.depth == 0 and not target.is_sitemap:
                raise
            return self._unusable(target, earlier, "ADDRESS_REFUSED", error.message)
        except BadContentError as error:
            if error.reason in ("SITE_UNAVAILABLE", "CRAWL_DELAY_TOO_LONG", "SOURCE_TOO_LARGE"):
                raise
            if error.reason in ("SOURCE_SILENT", "PAGE_TOO_SLOW"):
                return self._failed(target, earlier, error.reason, error.message)
            return self._unusable(target, earlier, error.reason, error.message)
        except (aiohttp.ClientError, OSError) as error:
            reason = "PAGE_UNAVAILABLE"
            return self._failed(target, earlier, reason, f"{type(error).__name__}: {shown(str(error))}")
        self._failures[site(target.address)] = 0
        return answer, found

    def _unusable(self, target: Target, earlier: Answer, reason: str, message: str) -> tuple[Answer, list[Target]]:
        """What cannot be read. Where it could before, it still leads where it led, and nothing counts as gone."""
        refused = self._refused(target, reason, message, identified=not earlier.content)
        if not earlier.content:
            return refused, []
        return replace(refused, content=earlier.content), self._leads(target, earlier.content)

    def _failed(self, target: Target, earlier: Answer, reason: str, message: str) -> tuple[Answer, list[Target]]:
        """A page that does not answer now keeps what it said before; sites must not fail all the time."""
        host = site(target.address)
        self._failures[host] += 1
        if self._failures[host] >= _FAILURES_IN_A_ROW:
            raise BadContentError(
                "SITE_UNAVAILABLE",
                f"{host} failed for {_FAILURES_IN_A_ROW} addresses in a row, the last time: {message}",
            )
        if earlier.content:
            self._count("failed, kept as it was", target)
            return earlier, self._leads(target, earlier.content)
        return self._refused(target, reason, message, identified=target.is_sitemap), []

    def _judged(self, target: Target, earlier: Answer, fetched: Fetched) -> tuple[Answer, list[Target]]:
        if fetched.status == 304 and earlier.content:
            self._count("unchanged", target)
            return earlier, self._leads(target, earlier.content)
        if fetched.status in REDIRECTS:
            return self._redirected(target, fetched)
        if fetched.status != 200:
            return self._outcome(f"answered {fetched.status}", target), []
        content = self._read(target, earlier, fetched)
        if not content:
            return Answer(), []
        headers = fetched.headers
        answer = Answer(headers.get("ETag", "")[:1024], headers.get("Last-Modified", "")[:128], content)
        self._count("fetched", target)
        return answer, self._leads(target, content)

    def _redirected(self, target: Target, fetched: Fetched) -> tuple[Answer, list[Target]]:
        leads = canonical(fetched.headers.get("Location", ""), target.address)
        if not leads or not self._scope.holds(leads):
            return self._outcome(f"redirected out of allow to {site(leads) if leads else 'no address'}", target), []
        if target.address.startswith("https:") and leads.startswith("http:"):
            return self._outcome("redirected from https to http", target), []
        if target.hops == MAX_HOPS:
            return self._outcome("redirected too often", target), []
        return self._outcome("redirected", target), [replace(target, address=leads, hops=target.hops + 1)]

    def _read(self, target: Target, earlier: Answer, fetched: Fetched) -> dict[str, Any]:
        """The content of an answer as it is kept; empty if it is neither page nor sitemap."""
        if target.is_sitemap or _is_sitemap(fetched):
            found = self._reader.sitemap(fetched.content, target.address)
            return {"reader": _READER, "pages": found.pages, "sitemaps": found.sitemaps}
        if fetched.content_type not in _PAGES:
            self._count(f"not a page ({fetched.content_type[:40]})", target)
            return {}
        robots = fetched.headers.get("X-Robots-Tag", "")
        page = self._reader.page(fetched.content, target.address, fetched.content_type, fetched.charset, robots)
        now = datetime.now(UTC)
        content = {"reader": _READER, "content_type": fetched.content_type or "text/html", **asdict(page)}
        before = dict(earlier.content)
        time_before = before.pop("fetch_time", None)
        # Links and reader do not make another record of a page.
        same = time_before is not None and _record_part(before) == _record_part(content)
        if same:
            return {**content, "fetch_time": time_before}
        if time_before is not None:
            # The latest event time counts, also where the clock was put back.
            now = max(now, datetime.fromisoformat(time_before) + timedelta(seconds=1))
        return {**content, "fetch_time": now.isoformat()}

    def _leads(self, target: Target, content: Mapping[str, Any]) -> list[Target]:
        if "pages" in content:
            pages = [Target(page) for page in content["pages"] if self._scope.holds(page)]
            own = [page for page in content["sitemaps"] if site(page) == site(target.address)]
            deeper = [replace(target, address=page, hops=target.hops + 1, is_sitemap=True) for page in own]
            return pages + (deeper if target.hops < MAX_HOPS else [])
        links = () if self._kind.no_links or target.depth >= self._kind.max_depth else content["links"]
        found = [Target(link, target.depth + 1) for link in links if self._scope.holds(link)]
        named = self._named_instead(target, content)
        return [Target(named, target.depth), *found] if named else found

    def _named_instead(self, target: Target, content: Mapping[str, Any]) -> str:
        """The page of this crawl that a page names as the one to collect in its place; empty if it names none."""
        named: str = content["canonical"]
        return named if named and named != target.address and self._scope.holds(named) else ""

    def _of(self, target: Target, answer: Answer) -> Iterator[RawRecord | Refusal]:
        """The record of a page, or its refusal, if it has one."""
        where, content = shown(target.address), answer.content
        if answer.refusal is not None:
            yield Refusal(where, **answer.refusal, content=b"")
            return
        if "text" not in content or not content["indexed"] or self._named_instead(target, content):
            return
        if not content["text"]:
            self._count("without text", target)
            return
        names = Page.__dataclass_fields__
        page = Page(**{name: value for name, value in content.items() if name in names})
        moment = datetime.fromisoformat(content["fetch_time"])
        piece = FetchedPage(target.address, page, content["content_type"], moment)
        try:
            yield self._kind.record(self._spec.source, ReadFile(where, "", ()), piece)
        except RecordRefusedError as error:
            yield Refusal(where, error.reason, error.message, self._kind.content(piece), identified=True)

    def _refused(self, target: Target, reason: str, message: str, *, identified: bool) -> Answer:
        self._count("refused", target)
        return Answer(refusal={"reason": reason, "message": message, "identified": identified})

    def _outcome(self, what: str, target: Target) -> Answer:
        self._count(what, target)
        return Answer()

    def _count(self, what: str, target: Target) -> None:
        self._outcomes[what] += 1
        if what not in self._first and len(self._first) < 5:
            self._first[what] = target.address

    # Requests.

    def _fetch(self, target: Target, earlier: Answer) -> Fetched:
        headers = {"Accept": "text/html,application/xhtml+xml,text/plain;q=0.9,application/xml;q=0.8,*/*;q=0.1"}
        if earlier.content.get("reader") == _READER:
            if earlier.etag:
                headers["If-None-Match"] = earlier.etag
            elif earlier.last_modified:
                headers["If-Modified-Since"] = earlier.last_modified
        limit = _SITEMAP_BYTES if target.is_sitemap else _PAGE_BYTES
        return self._patiently(lambda: self._once(target.address, headers, limit), ATTEMPTS)

    def _once(self, address: str, headers: Mapping[str, str], limit: int) -> Fetched:
        self._sleep(self._rules.pause_s(address))
        try:
            return self.get(address, headers, limit)
        finally:
            self._rules.asked(address)


def _is_sitemap(fetched: Fetched) -> bool:
    return fetched.content_type in ("application/xml", "text/xml") and (
        b"<urlset" in fetched.content[:4096] or b"<sitemapindex" in fetched.content[:4096]
    )


def _record_part(content: Mapping[str, Any]) -> dict[str, Any]:
    names = ("text", "title", "language", "content_type")
    return {name: content.get(name) for name in names}
