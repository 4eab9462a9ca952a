"""What a page says and where it leads, and what a sitemap lists; no I/O.

The libraries are large and parse what strangers wrote: `adapters/crawl/page_process.py` runs this in a process of
its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from services.ingest.engine.charsets import text_of
from services.ingest.engine.file_format import BadContentError
from services.ingest.engine.web_address import canonical

MAX_LINKS = 10_000
MAX_LISTED = 50_000
"""Addresses in one sitemap, as the protocol of sitemaps says."""
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_DECLARED = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]{1,40})""", re.IGNORECASE)
_DECLARED_WITHIN = 4096
_SPACES = re.compile(r"\s+")
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8}){0,3}")
_TITLE_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Page:
    """A page: its main text, and where it leads. `indexed` is False where the page asks not to be collected."""

    text: str = ""
    title: str = ""
    language: str = ""
    canonical: str = ""
    links: tuple[str, ...] = ()
    indexed: bool = True
    charset: str = ""


@dataclass(frozen=True, slots=True)
class Sitemap:
    """What a sitemap lists: pages, and further sitemaps."""

    pages: tuple[str, ...] = ()
    sitemaps: tuple[str, ...] = ()


def read_page(content: bytes, address: str, content_type: str = "", charset: str = "", robots: str = "") -> Page:
    """A page of HTML or plain text.

    Args:
        content: as it was sent.
        address: its own, for links that are relative.
        content_type: `text/html` and the like; what the content looks like when empty.
        charset: as the server says.
        robots: the header X-Robots-Tag.
    """
    text, used = _decoded(content, charset)
    if content_type == "text/plain":
        return Page(text.strip(), charset=used, indexed=not _words(robots) & {"noindex", "none"})
    tree = _tree(text)
    if tree is None:
        return Page(charset=used)
    wishes = _words(robots) | {word for meta in _named(tree, "robots", "tidemill-ingest") for word in _words(meta)}
    base = next((found for found in tree.xpath("//base/@href")), "")
    within = canonical(base, address) or address
    links = () if wishes & {"nofollow", "none"} else tuple(_links(tree, within))
    named = next((canonical(found, within) for found in tree.xpath('//link[@rel="canonical"]/@href')), "")
    language = next((found for found in tree.xpath("/html/@lang") if _LANGUAGE.fullmatch(found)), "")
    title = _SPACES.sub(" ", next((found.text_content() for found in tree.xpath("//head/title")), "")).strip()
    return Page(
        _main_text(tree, address),
        title[:_TITLE_CHARACTERS],
        language,
        named,
        links,
        not wishes & {"noindex", "none"},
        used,
    )


def read_sitemap(content: bytes, address: str) -> Sitemap:
    """A sitemap: XML, or a plain list of addresses.

    Raises:
        BadContentError: it is neither.
    """
    from lxml import etree

    if not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        lines = [canonical(line) for line in content.decode("utf-8", "replace").split()[:MAX_LISTED]]
        return Sitemap(tuple(dict.fromkeys(line for line in lines if line)))
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, recover=False)
    try:
        root = etree.fromstring(content, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise BadContentError("INVALID_SITEMAP", f"the sitemap is not valid XML: {error}") from error
    kind = etree.QName(root).localname
    if kind not in ("urlset", "sitemapindex"):
        raise BadContentError("INVALID_SITEMAP", f"<{kind[:40]}> is not a sitemap: <urlset> or <sitemapindex> is")
    listed: dict[str, None] = {}
    for element in root.iterfind("{*}*/{*}loc"):
        found = canonical(element.text or "", address)
        if found and len(listed) < MAX_LISTED:
            listed[found] = None
    return Sitemap(tuple(listed)) if kind == "urlset" else Sitemap(sitemaps=tuple(listed))


def _decoded(content: bytes, charset: str) -> tuple[str, str]:
    """The text, and the encoding that it was read in: by its mark, by what UTF-8 proves, as declared, as it looks."""
    for mark, name in _BOMS:
        if content.startswith(mark):
            return content.decode(name, "replace").replace("\0", ""), name
    try:
        # Text in another encoding is hardly ever valid UTF-8, whatever the page says.
        return content.decode().replace("\0", ""), "utf-8"
    except UnicodeDecodeError:
        pass
    inner = _DECLARED.search(content[:_DECLARED_WITHIN])
    declared = charset or (inner.group(1).decode("ascii") if inner else "")
    text, used = text_of(content, "" if declared.lower().replace("_", "-") in ("utf-8", "utf8") else declared)
    return text.replace("\0", ""), used


def _tree(text: str) -> Any:
    """The tree of a page; None if it has no content."""
    from lxml import etree, html

    parser = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, no_network=True)
    try:
        return html.document_fromstring(text.encode("utf-8", "replace"), parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError):
        return None


def _main_text(tree: Any, address: str) -> str:
    import trafilatura

    found = trafilatura.extract(tree, url=address, output_format="txt", include_comments=False, include_tables=True)
    return (found or "").strip()


def _links(tree: Any, within: str) -> Iterator[str]:
    seen: set[str] = set()
    for anchor in tree.iter("a", "area"):
        if "nofollow" in _words(anchor.get("rel") or ""):
            continue
        found = canonical(anchor.get("href") or "#", within)
        if found and found not in seen:
            seen.add(found)
            yield found
            if len(seen) == MAX_LINKS:
                return


def _named(tree: Any, *names: str) -> list[str]:
    return [
        element.get("content") or "" for element in tree.iter("meta") if (element.get("name") or "").lower() in names
    ]


def _words(text: str) -> set[str]:
    return {word.strip().lower() for word in re.split(r"[\s,]+", text) if word.strip()}
