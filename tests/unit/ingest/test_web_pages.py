"""Crawls of a real site on loopback: what is fetched, what becomes a record, and sites that are broken or hostile."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from services.ingest.adapters import patient_http
from services.ingest.adapters.crawl import page_process, web_crawl
from services.ingest.adapters.crawl.page_process import PageProcess
from services.ingest.adapters.crawl.page_store import SqlPageStore
from services.ingest.adapters.ledger import TemporaryLedger
from services.ingest.adapters.pulled_store import SqlPulledStore
from services.ingest.adapters.source_files.port import ReadLimits
from services.ingest.adapters.stores import SqlImportStore
from services.ingest.app.interrupt import Interrupt, InterruptedReadError
from services.ingest.app.ports import Position
from services.ingest.app.runner import ImportRunner
from services.ingest.domain.record import RawRecord, Refusal
from services.ingest.domain.source_import import Import, ImportState, SourceSpec, check_spec
from services.ingest.engine.file_format import BadContentError
from services.ingest.engine.formats.web_pages import WebPages
from services.ingest.engine.html_page import read_page, read_sitemap
from services.ingest.engine.web_address import Scope, canonical
from services.kit.clock import SystemClock
from services.kit.errors import FailedPreconditionError, InvalidArgumentError, PermissionDeniedError
from services.kit.ids import new_id
from tests.conftest import OpenDatabase
from tests.site import Answer, Site, page
from tests.sources import file_sources
from tests.unit.ingest.test_synchronised_sources import Bus


class Kept:
    """The process that reads pages, started once for all crawls of the tests."""

    def __init__(self) -> None:
        self.process = PageProcess(Interrupt())
        self.page, self.sitemap = self.process.page, self.process.sitemap

    def close(self) -> None:
        """A crawl's end is not this one's."""


@pytest.fixture(scope="module")
def reader() -> Iterator[Kept]:
    kept = Kept()
    yield kept
    kept.process.close()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, reader: Kept) -> Iterator[Site]:
    monkeypatch.setattr(patient_http, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(web_crawl, "PageProcess", lambda _: reader)
    made = Site()
    yield made
    made.close()


class Harness:
    """Crawls on a real database."""

    def __init__(self, site: Site, open_database: OpenDatabase) -> None:
        engine = open_database("ingest")
        self.site, self.bus = site, Bus()
        self.imports, self.pulled = SqlImportStore(engine), SqlPulledStore(engine)
        self.sources = file_sources(hosts=[site.host], pages=SqlPageStore(engine))

    def kind(self, path: str = "/", **options: Any) -> WebPages:
        return WebPages(self.site.url(path), **{"delay_s": 0.001, **options})

    def pieces(self, kind: WebPages, position: Position | None = None) -> list[RawRecord | Refusal]:
        spec, interrupt = SourceSpec("site", kind), Interrupt()
        survey = self.sources.survey(spec, interrupt)
        return list(self.sources.read(spec, survey, interrupt, position or Position(import_name=new_id())))

    def urls(self, kind: WebPages, position: Position | None = None) -> list[str]:
        """Paths of the records."""
        found = [piece for piece in self.pieces(kind, position) if isinstance(piece, RawRecord)]
        return [record.attributes["url"].removeprefix(self.site.url("")) for record in found]

    def collect(self, kind: WebPages) -> Import:
        """A whole import."""
        now = datetime.now(UTC)
        made = Import(f"imports/{new_id()}", SourceSpec("site", kind), ImportState.RUNNING, now, now)
        self.imports.create_import(made, "")
        ImportRunner(self.imports, self.pulled, self.sources, self.bus, TemporaryLedger, SystemClock()).run(
            made, Interrupt()
        )
        done = self.imports.import_named(made.name)
        assert done is not None
        return done


@pytest.fixture
def crawl(site: Site, open_service_database: OpenDatabase) -> Harness:
    return Harness(site, open_service_database)


def test_a_page_becomes_a_record_of_its_main_text(crawl: Harness) -> None:
    crawl.site.put("/", page("home", "/a?x=1#part"), Content_Type="text/html; charset=utf-8")
    crawl.site.put("/a?x=1", page("a", "mailto:x@y", "javascript:1", "http://other.example/", "/pic.png"))
    crawl.site.put("/pic.png", b"\x89PNG", Content_Type="image/png")
    home, other = crawl.pieces(crawl.kind())
    assert isinstance(home, RawRecord)
    assert isinstance(other, RawRecord)
    assert home.record_id == crawl.site.url("/")
    assert other.record_id.startswith("url_")
    assert home.text.startswith("home\nThis is home. The miller")
    assert "/a?x=1" not in home.text
    assert {name: home.attributes[name] for name in ("url", "title", "language", "content_type")} == {
        "url": crawl.site.url("/"),
        "title": "Title of home",
        "language": "en",
        "content_type": "text/html",
    }
    assert datetime.fromisoformat(home.attributes["fetch_time"]) <= datetime.now(UTC)
    assert sorted(crawl.site.paths()) == ["/", "/a?x=1", "/pic.png"]


def test_a_second_crawl_fetches_what_changed_and_withdraws_what_is_gone(crawl: Harness) -> None:
    site = crawl.site
    site.put("/", page("home", "/same", "/edited", "/gone", "/lost"), ETag='"1"')
    for name in ("same", "edited", "gone", "lost"):
        site.put(f"/{name}", page(name), ETag=f'"{name}"')
    first = crawl.collect(crawl.kind())
    assert (first.state, first.record_count, first.not_synchronized) == (ImportState.SUCCEEDED, 5, "")
    site.asked.clear()
    site.put("/edited", page("edited again"), ETag='"edited2"')
    site.put("/gone", b"", 410)
    del site.answers["/lost"]
    second = crawl.collect(crawl.kind())
    assert (second.differences.added, second.differences.changed, second.differences.gone) == (0, 1, 2)
    assert sorted(site.paths(304)) == ["/", "/same"]
    assert site.paths(200) == ["/edited"]
    assert [text.partition("\n")[0] for text in crawl.bus.held] == ["edited again", "home", "same"]
    # Fetched again without ETag, an equal page counts as unchanged.
    site.put("/same", page("same"))
    crawl.collect(crawl.kind())
    assert crawl.collect(crawl.kind()).differences.changed == 0


def test_a_crawl_goes_on_where_its_process_died(crawl: Harness) -> None:
    names = [f"/{number}" for number in range(6)]
    crawl.site.put("/", page("home", *names))
    for name in names:
        crawl.site.put(name, page(name))
    kind, name = crawl.kind(), new_id()
    spec, interrupt = SourceSpec("site", kind), Interrupt()
    survey = crawl.sources.survey(spec, interrupt)
    reading = crawl.sources.read(spec, survey, interrupt, Position(import_name=name))
    taken = [next(reading) for _ in range(4)]
    assert isinstance(reading, Iterator)
    del reading
    fetched = crawl.site.paths()
    rest = crawl.urls(kind, Position(import_name=name))
    assert sorted(crawl.site.paths()) == sorted(["/", *names]), "nothing is fetched twice, and nothing is left out"
    assert sorted(rest) == sorted(["/", *names])
    assert [piece.attributes["url"] for piece in taken if isinstance(piece, RawRecord)] == [
        crawl.site.url(path) for path in rest[:4]
    ]
    assert len(fetched) < len(crawl.site.paths())


def test_robots_are_obeyed_and_a_sitemap_index_is_followed(crawl: Harness) -> None:
    site = crawl.site
    named = "".join(f"<sitemap><loc>{site.url(path)}</loc></sitemap>" for path in ("/s.xml.gz", "/secret/s.xml"))
    site.put(
        "/robots.txt",
        f"User-agent: *\nDisallow: /secret\nSitemap: {site.url('/index.xml')}\n"
        "User-agent: tidemill-ingest\nDisallow: /secret\nDisallow: /mine\n".encode(),
    )
    site.put("/index.xml", f"<sitemapindex>{named}</sitemapindex>".encode(), Content_Type="application/xml")
    listed = "".join(f"<url><loc>{site.url(path)}</loc></url>" for path in ("/listed", "/mine", "/docs/deep"))
    site.put("/s.xml.gz", gzip.compress(f"<urlset>{listed}</urlset>".encode()), Content_Type="application/gzip")
    site.put("/", page("home", "/secret/a", "/linked"))
    for name in ("/secret/a", "/linked", "/listed", "/mine", "/docs/deep"):
        site.put(name, page(name))
    assert sorted(crawl.urls(crawl.kind())) == ["/", "/docs/deep", "/linked", "/listed"]
    assert not {path for path in site.paths() if path.startswith(("/secret", "/mine"))}
    assert sorted(crawl.urls(crawl.kind(no_links=True, deny=(f"{site.host}/docs/*",)))) == ["/", "/listed"]
    assert sorted(crawl.urls(crawl.kind(no_sitemaps=True))) == ["/", "/linked"]


def test_a_site_whose_robots_fail_is_not_crawled_and_a_long_delay_is_refused(crawl: Harness) -> None:
    crawl.site.put("/", page("home"))
    crawl.site.put("/robots.txt", b"", 503)
    with pytest.raises(FailedPreconditionError) as caught:
        crawl.pieces(crawl.kind())
    assert caught.value.reason == "SITE_UNAVAILABLE"
    crawl.site.put("/robots.txt", b"User-agent: *\nCrawl-delay: 4000")
    with pytest.raises(FailedPreconditionError, match="4000 s between two requests"):
        crawl.pieces(crawl.kind())
    assert crawl.site.paths() == []


def test_depth_pages_and_redirects_are_bounded(crawl: Harness) -> None:
    site = crawl.site
    site.otherwise = lambda path: Answer(page(path, f"{path}x", f"{path}y")) if path.startswith("/trap") else None
    site.put("/trap", page("trap", "/trapx", "/loop", "/far"))
    site.put("/loop", b"", 302, Location="/loop2")
    site.put("/loop2", b"", 301, Location="/loop")
    for number in range(20):
        site.put("/far" if not number else f"/far{number}", b"", 307, Location=f"/far{number + 1}")
    assert sorted(crawl.urls(crawl.kind("/trap", max_depth=2))) == ["/trap", "/trapx", "/trapxx", "/trapxy"]
    assert site.paths(302) == ["/loop"]
    assert len(site.paths(307)) == 6
    position = Position(import_name=new_id())
    assert len(crawl.urls(crawl.kind("/trap", max_depth=100, max_pages=12), position)) <= 12
    assert position.cut == "max_pages"


def test_a_crawl_that_was_cut_withdraws_nothing(crawl: Harness) -> None:
    crawl.site.put("/", page("home", "/a", "/b"))
    for name in "ab":
        crawl.site.put(f"/{name}", page(name))
    kind = crawl.kind(no_sitemaps=True)
    crawl.collect(kind)
    done = crawl.collect(replace(kind, max_pages=2))
    assert (done.not_synchronized, done.record_count, done.differences.gone) == ("max_pages", 2, 0)
    assert len(crawl.bus.held) == 3


def test_a_page_that_fails_for_a_while_is_asked_again_and_else_kept(crawl: Harness) -> None:
    site = crawl.site
    site.put("/", page("home", "/busy", "/a"))
    site.put("/a", page("a"))
    site.put("/busy", page("busy"), 500, 429, 200, Retry_After="0")
    first = crawl.collect(crawl.kind())
    assert (first.record_count, first.rejected_count) == (3, 0)
    site.put("/busy", b"", 500)
    del site.answers["/a"]
    second = crawl.collect(crawl.kind())
    assert (second.record_count, second.not_synchronized, second.differences.gone) == (2, "", 1)
    # One that has never answered leads to what is not known: nothing is withdrawn.
    site.put("/", page("home", "/new"))
    site.put("/new", b"", 500)
    third = crawl.collect(crawl.kind())
    assert (third.rejected_count, third.not_synchronized, third.differences.gone) == (1, "refused", 0)


def test_what_a_broken_sitemap_or_page_led_to_is_not_gone(crawl: Harness) -> None:
    site = crawl.site
    sitemap = f"<urlset><url><loc>{site.url('/listed')}</loc></url></urlset>".encode()
    site.put("/sitemap.xml", sitemap, Content_Type="application/xml")
    site.put("/", page("home", "/hub"))
    site.put("/hub", page("hub", "/linked"))
    site.put("/listed", page("listed"))
    site.put("/linked", page("linked"))
    assert crawl.collect(crawl.kind()).record_count == 4
    site.put("/sitemap.xml", b"<urlset><url>", Content_Type="application/xml")
    site.put("/hub", page("hub", "/linked"), Content_Encoding="unknown")
    site.put("/linked", page("linked, edited"))
    for _ in range(2):  # what was refused once is refused again, and still led where it led
        done = crawl.collect(crawl.kind())
        assert (done.rejected_count, done.not_synchronized, done.differences.gone) == (2, "refused", 0)
        found = {text.partition("\n")[0] for text in crawl.bus.held}
        assert found == {"home", "hub", "listed", "linked, edited"}
    site.put("/sitemap.xml", sitemap, Content_Type="application/xml")
    site.put("/hub", page("hub"))
    mended = crawl.collect(crawl.kind())
    assert (mended.rejected_count, mended.not_synchronized, mended.differences.gone) == (0, "", 1)


def test_a_site_that_fails_all_the_time_fails_the_import(crawl: Harness) -> None:
    crawl.site.put("/", page("home", *(f"/{number}" for number in range(9))))
    crawl.site.otherwise = lambda path: Answer(statuses=[502]) if path[1:].isdigit() else None
    done = crawl.collect(crawl.kind())
    assert done.failure is not None
    assert (done.state, done.failure.reason) == (ImportState.FAILED, "SITE_UNAVAILABLE")
    assert "5 addresses in a row" in done.failure.message


def test_hostile_pages_are_refused_by_name_and_the_others_are_read(
    crawl: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_crawl, "_PAGE_BYTES", 1 << 20)
    site = crawl.site
    site.put("/", page("home", "/bomb", "/large", "/packed", "/good", "/br", "/xml", "/deep"))
    site.put("/bomb", gzip.compress(b"<p>" * (32 << 20)), Content_Encoding="gzip")
    site.put("/large", b"<html>" + b"x" * (2 << 20))
    site.put("/packed", gzip.compress(page("packed")), Content_Encoding="gzip")
    site.put("/br", b"\x0b\x02", Content_Encoding="br")
    site.put("/good", page("good"))
    site.put("/deep", b"<html><body>" + b"<div>" * 100_000 + b"text")
    bomb = '<!DOCTYPE u [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)
    )
    site.put("/xml", f"{bomb}]><urlset><url><loc>&j;</loc></url></urlset>".encode(), Content_Type="text/xml")
    found = crawl.pieces(crawl.kind())
    refused = {piece.location.rpartition("/")[2]: piece.reason for piece in found if isinstance(piece, Refusal)}
    assert refused.pop("deep", "PAGE_UNREADABLE") in ("PAGE_UNREADABLE", "PAGE_TOO_COMPLEX")
    assert {name: refused[name] for name in ("bomb", "large", "br")} == {
        "bomb": "PAGE_TOO_LARGE",
        "large": "PAGE_TOO_LARGE",
        "br": "PACKING_NOT_READ",
    }
    titles = {piece.attributes.get("title") for piece in found if isinstance(piece, RawRecord)}
    assert {"Title of home", "Title of packed", "Title of good"} <= titles


def test_a_parser_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_process, "_FIRST_READ_S", 0.0)
    reader = PageProcess(Interrupt(), 0.001)
    with pytest.raises(BadContentError) as caught:
        reader.page(page("a"), "http://a/", "text/html", "", "")
    assert caught.value.reason == "PAGE_TOO_COMPLEX"
    monkeypatch.setattr(page_process, "_FIRST_READ_S", 60.0)
    reader = PageProcess(Interrupt())
    assert reader.page(page("a"), "http://a/", "text/html", "", "").title == "Title of a"
    assert reader._child is not None
    reader._child.kill()
    reader._child.wait()
    with pytest.raises(BadContentError, match="ended"):
        reader.page(page("a"), "http://a/", "text/html", "", "")
    assert reader.page(page("b"), "http://a/", "text/html", "", "").title == "Title of b"
    reader.close()


@pytest.mark.parametrize(
    ("encoding", "header", "meta"),
    [
        ("gb18030", "", "gb2312"),
        ("gb18030", "gbk", ""),
        ("gb18030", "utf-8", ""),
        ("gb18030", "", ""),
        ("utf-8", "iso-8859-1", "gb2312"),
        ("utf-8-sig", "", ""),
        ("utf-16", "", ""),
        ("big5", "big5", ""),
    ],
)
def test_the_text_is_right_whatever_the_server_says_about_its_encoding(encoding: str, header: str, meta: str) -> None:
    text = "今天天气很好，我们去公园散步，看到了很多花。"
    if encoding == "big5":
        text = "今天天氣很好，我們去公園散步，看到了很多花。"
    head = f'<meta charset="{meta}">' if meta else ""
    body = page("x", head=head, lang="zh").decode().replace("This is x.", text * 6).encode(encoding)
    found = read_page(body, "http://h/", "text/html", header)
    assert text * 6 in found.text
    assert (found.language, found.title) == ("zh", "Title of x")


def test_pages_that_do_not_want_to_be_collected_are_not(crawl: Harness) -> None:
    site = crawl.site
    site.put("/", page("home", "/noindex", "/header", "/print", "/one"))
    site.put("/noindex", page("a", "/behind", head='<meta name="robots" content="noindex, nofollow">'))
    site.put("/header", page("b"), X_Robots_Tag="noindex")
    site.put("/print", page("one", head='<link rel="canonical" href="/one">'))
    site.put("/one", page("one"))
    site.put("/behind", page("behind"))
    assert sorted(crawl.urls(crawl.kind())) == ["/", "/one"]


def test_addresses_of_this_machine_and_network_are_not_fetched(site: Site, open_service_database: OpenDatabase) -> None:
    closed = file_sources(pages=SqlPageStore(open_service_database("ingest")))
    port = site.host.rpartition(":")[2]
    for uri in (site.url(), f"http://[::ffff:127.0.0.1]:{port}/", "http://169.254.169.254/latest/", "http://10.0.0.1/"):
        spec = SourceSpec("site", WebPages(uri))
        with pytest.raises(PermissionDeniedError):
            list(closed.read(spec, closed.survey(spec, Interrupt()), Interrupt(), Position(import_name=new_id())))
    assert site.asked == []


def test_each_link_and_redirect_is_judged_again(crawl: Harness, open_service_database: OpenDatabase) -> None:
    site, inner = crawl.site, Site()
    inner.put("/", page("secret"))
    site.put("/", page("home", inner.url("/"), "/away", "http://169.254.169.254/latest/"))
    site.put("/away", b"", 302, Location=inner.url("/"))
    # Even where the list of the source allows it.
    allowed = crawl.kind(allow=(site.host, inner.host, "169.254.169.254"))
    found = crawl.pieces(allowed)
    assert [piece.attributes["title"] for piece in found if isinstance(piece, RawRecord)] == ["Title of home"]
    assert inner.asked == []
    inner.close()


def test_a_site_without_text_says_what_it_answered(crawl: Harness) -> None:
    crawl.site.put("/", b"", 302, Location="http://www.other.example/")
    with pytest.raises(FailedPreconditionError) as caught:
        crawl.pieces(crawl.kind())
    assert caught.value.reason == "EMPTY_SOURCE"
    assert "redirected out of allow to www.other.example" in caught.value.message


def test_an_interrupt_ends_a_pause(crawl: Harness) -> None:
    crawl.site.put("/", page("home", "/a"))
    interrupt = Interrupt()
    crawl.site.before = lambda path: interrupt.set() if path == "/sitemap.xml" else None
    spec = SourceSpec("site", crawl.kind(delay_s=60.0))
    with pytest.raises(InterruptedReadError):
        list(crawl.sources.read(spec, crawl.sources.survey(spec, Interrupt()), interrupt, Position(import_name="i")))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"uri": "/data"}, "uri"),
        ({"uri": "s3://bucket/x"}, "uri"),
        ({"more_uris": ("ftp://x/",)}, "more_uris[0]"),
        ({"allow": ("https://h/x",)}, "allow[0]"),
        ({"allow": ("h/a*",), "deny": ("H/",)}, "deny[0]"),
        ({"allow": ("other.example",)}, "allow"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_spec(SourceSpec("s", WebPages(**{"uri": "http://h/", **options})))
    assert [item.field for item in caught.value.violations] == [f"spec.web_pages.{field}"]


def test_scopes_and_addresses_have_one_form() -> None:
    assert canonical("HTTP://H:80/a/../b?q=ä#x") == "http://h/b?q=%C3%A4"
    assert canonical("../c", "http://h/a/b/") == "http://h/a/c"
    assert [canonical(text) for text in ("mailto:a@b", "http://u:p@h/", "http://[", "file:///etc", "")] == [""] * 5
    scope = Scope(["http://h:8080/x"], [], [])
    assert [scope.holds(url) for url in ("http://h:8080/y", "http://h/", "http://evil/h:8080/")] == [True, False, False]
    scope = Scope([], ["*.example.com/g/*", "h"], ["h/admin*"])
    judged = ["http://a.example.com/g/1", "http://example.com/g/1", "http://evil/a.example.com/g/", "https://h/admin?x"]
    assert [scope.holds(url) for url in judged] == [True, False, False, False]


def test_a_sitemap_that_is_none_is_refused() -> None:
    assert read_sitemap(b"http://h/1\nhttp://h/2\nnothing", "http://h/").pages == ("http://h/1", "http://h/2")
    for content in (b"<html/>", b"<urlset>", b'<!DOCTYPE x SYSTEM "http://h/d"><x/>'):
        with pytest.raises(BadContentError):
            read_sitemap(content, "http://h/")


def test_limits_of_an_import_hold_for_crawls(site: Site, open_service_database: OpenDatabase) -> None:
    site.put("/", page("home"))
    limits = ReadLimits(import_bytes=100)
    sources = file_sources(hosts=[site.host], pages=SqlPageStore(open_service_database("ingest")), limits=limits)
    spec = SourceSpec("site", WebPages(site.url(), no_sitemaps=True))
    with pytest.raises(FailedPreconditionError) as caught:
        list(sources.read(spec, sources.survey(spec, Interrupt()), Interrupt(), Position(import_name="i")))
    assert caught.value.reason == "SOURCE_TOO_LARGE"
