"""HTML to text."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from services.cleaning.engine.operator import Params, TextMap

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_MARKUP = re.compile(r"<(?:[A-Za-z][A-Za-z0-9:-]*(?:\s[^<>]*)?/?|/[A-Za-z][^<>]*|!--|!DOCTYPE[^<>]*)>?", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_SILENT = ["script", "style", "template", "noscript", "head", "iframe", "svg", "object"]
# fmt: off
_BLOCKS = frozenset(
    (
        "address", "article", "aside", "blockquote", "body", "br", "center", "dd", "div", "dl", "dt",
        "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header",
        "hr", "html", "li", "main", "nav", "ol", "option", "p", "pre", "section", "table", "tbody", "tfoot",
        "thead", "title", "tr", "ul",
    )
)
# fmt: on
_CELLS = frozenset(("td", "th"))
_LINE_ENDS = re.compile(r"(?:[ \t\r\f\v]*\n)+")
_RUN = re.compile(r"\s+")
# Void elements and <p> are not closed and would look like depth.
_TAG = re.compile(r"<(/?)(?!(?:br|hr|img|input|meta|link|p|li|td|tr|th|option|dd|dt|wbr|col)\b)[A-Za-z]", re.IGNORECASE)
_DEEPEST = 2000


class StripHtml(TextMap[Params]):
    """Leaves the text of HTML: blocks become lines, scripts and styles go, entities become characters.

    Text without a tag keeps its angle brackets (`a < b`); only its entities are replaced. Text with inline tags
    only (`<b>`) is taken for plain text with mark-up in it and keeps its lines.
    """

    def map(self, text: str) -> str:
        """The text without markup."""
        if "<" in text and _MARKUP.search(text):
            return _text_of(text)
        if "&" in text:
            return _ENTITY.sub(lambda match: html.unescape(match.group()), text)
        return text


def _too_deep(markup: str) -> bool:
    """Whether elements nest so deep that parsing them, which is quadratic in the depth, would take seconds."""
    if markup.count("<") <= _DEEPEST:
        return False
    depth = deepest = 0
    for match in _TAG.finditer(markup):
        depth += -1 if match.group(1) else 1
        deepest = max(deepest, depth)
        depth = max(depth, 0)
    return deepest > _DEEPEST


def _text_of(markup: str) -> str:
    from selectolax.lexbor import LexborHTMLParser

    if _too_deep(markup):
        return _LINE_ENDS.sub("\n", html.unescape(_MARKUP.sub("\n", markup))).strip()
    tree = LexborHTMLParser(markup)
    tree.strip_tags(_SILENT)
    root = tree.root
    if root is None:
        return ""
    pieces: list[tuple[bool, str]] = []
    blocks = False
    # An own stack, because hostile nesting is deeper than the interpreter's.
    stack: list[tuple[LexborNode | str, bool]] = [(root, False)]
    while stack:
        node, verbatim = stack.pop()
        if isinstance(node, str):
            pieces.append((True, node))
            continue
        tag = node.tag
        if tag == "-text":
            pieces.append((verbatim, node.text_content or ""))
            continue
        if tag in _BLOCKS:
            # The parser adds these two to every text.
            blocks = blocks or tag not in ("html", "body")
            pieces.append((True, "\n"))
            stack.append(("\n", True))
        elif tag in _CELLS:
            pieces.append((True, " "))
        inside = verbatim or tag in ("pre", "textarea")
        stack.extend((child, inside) for child in reversed(list(node.iter(include_text=True))))
    if not blocks:
        return "".join(piece for _, piece in pieces).strip()
    parts: list[str] = []
    fresh = True
    for verbatim, piece in pieces:
        shown = piece if verbatim else _RUN.sub(" ", piece)
        parts.append(shown if verbatim or not fresh else shown.lstrip())
        fresh = parts[-1].endswith("\n") if parts[-1] else fresh
    return _LINE_ENDS.sub("\n", "".join(parts)).strip()
