"""HTML to text: `services.cleaning.engine.markup` decides what is HTML, and all other text stays unchanged.

The text is written in the order in which it stands. A parser would build a tree first, which for hostile markup takes
quadratic time and memory: each of many paragraphs repeats all open formatting elements.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Final

from services.cleaning.engine.markup import BLOCKS, SILENT, Markup, Token, markup_of
from services.cleaning.engine.operator import TextMap, TextMapParams

_CELLS: Final = frozenset(("td", "th"))
_VERBATIM: Final = frozenset(("pre", "textarea"))
_POSSIBLE: Final = re.compile(r"<[A-Za-z/!?]")
_ENTITY: Final = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_RUN: Final = re.compile(r"\s+")
_LINES_A_BLOCK: Final = 4


class StripHtml(TextMap[TextMapParams]):
    """Keeps the text of HTML: blocks become lines, scripts and styles are removed, entities are decoded once.

    Markup is: tags of known elements with valid attributes, comments, the document type and CDATA sections. A start tag
    without its end tag counts only if the element needs none, an end tag only with a start, and a tag that the text
    speaks about (in quotes, `<p> and </p>`, `the <br> tag`) not at all. All other text stays unchanged, such as `a <b`,
    `<john@example.com>` and `<your name>`. Text with few blocks or none keeps its lines.
    """

    version = 3

    def map(self, text: str) -> str:
        """The text without markup."""
        if "<" in text and _POSSIBLE.search(text):
            markup = markup_of(text)
            if markup.tokens:
                return _text_of(text, markup)
        return _decoded(text)


def _decoded(text: str, document: bool = False) -> str:
    if "&" not in text:
        return text
    # Entities without a semicolon are decoded in documents only; in plain text `&copy=2` is part of an address.
    return html.unescape(text) if document else _ENTITY.sub(lambda match: html.unescape(match.group()), text)


def _text_of(text: str, markup: Markup) -> str:
    pieces = list(_pieces(text, markup))
    blocks = sum(token.kind in ("start", "whole") and token.name in BLOCKS for token in markup.tokens)
    layout = any(token.name in BLOCKS and token.name not in ("html", "body") for token in markup.tokens)
    # Few blocks in many lines: a text with some markup in it.
    if not layout or (not markup.document and _LINES_A_BLOCK * blocks < text.count("\n")):
        joined = "".join(piece for _, piece in pieces)
        return joined.strip() if blocks or joined.isspace() else joined
    parts: list[str] = []
    fresh = True
    for verbatim, piece in pieces:
        shown = piece if verbatim else _RUN.sub(" ", piece)
        parts.append(shown if verbatim or not fresh else shown.lstrip())
        fresh = parts[-1].endswith("\n") if parts[-1] else fresh
    lines = (line.rstrip(" \t\r\f\v") for line in "".join(parts).split("\n"))
    return "\n".join(line for line in lines if line).strip()


def _pieces(text: str, markup: Markup) -> Iterator[tuple[bool, str]]:
    """Pieces of text in order, and whether their white space stays."""
    document = markup.document
    verbatim = 0
    end = 0
    silent_until = _end_of_head(markup)
    for token in markup.tokens:
        if token.start < end:
            continue
        if token.start > end:
            yield verbatim > 0, _decoded(text[end : token.start], document)
        end = token.end
        if token.kind == "data":
            yield verbatim > 0, text[slice(*token.inside)]
        elif token.kind == "whole":
            yield from _whole(text, token, document)
        elif token.kind in ("start", "end"):
            name = token.name
            if name == "head" and token.kind == "start":
                end = max(end, silent_until)
            if name in BLOCKS:
                yield True, "\n"
            elif name in _CELLS and token.kind == "start":
                yield False, " "
            if name in _VERBATIM:
                verbatim = max(0, verbatim + (1 if token.kind == "start" else -1))
    if end < len(text):
        yield verbatim > 0, _decoded(text[end:], document)


def _whole(text: str, token: Token, document: bool) -> Iterator[tuple[bool, str]]:
    """An element whose content is characters."""
    # A document's title is not part of its page.
    if token.name in SILENT or (token.name == "title" and document):
        return
    inside = text[slice(*token.inside)]
    shown = inside if token.name in ("xmp", "noembed") else _decoded(inside, document)
    edge = "\n" if token.name in BLOCKS else ""
    yield True, edge
    yield token.name in _VERBATIM, shown
    yield True, edge


def _end_of_head(markup: Markup) -> int:
    """Where the head of a document ends: at its end tag, or where the body begins."""
    for token in markup.tokens:
        if (token.kind, token.name) in (("end", "head"), ("start", "body")):
            return token.start
    return 0
