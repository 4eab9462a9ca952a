"""HTML to text.

This module decides, token by token, what is HTML, and passes only that to the parser. In plain text an angle bracket
belongs to an address, a comparison or a placeholder, and a lenient parser would turn those into tags.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Final

from services.cleaning.engine.operator import TextMap, TextMapParams

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

# fmt: off
_BLOCKS: Final = frozenset(
    (
        "address", "article", "aside", "blockquote", "body", "br", "center", "dd", "details", "dialog", "dir", "div",
        "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header",
        "hgroup", "hr", "html", "li", "main", "menu", "nav", "ol", "option", "p", "pre", "search", "section",
        "summary", "table", "tbody", "tfoot", "thead", "title", "tr", "ul",
    )
)
# Elements whose content is not text of the page; without an end tag they would remove the rest of the page.
_SILENT: Final = ("head", "iframe", "noscript", "object", "script", "style", "svg", "template")
# The parser reads their content as characters up to the end tag.
_RAW: Final = frozenset(("iframe", "noembed", "noscript", "script", "style", "textarea", "title", "xmp", "svg",
                         "template", "object"))
_VOID: Final = frozenset(("area", "base", "basefont", "bgsound", "br", "col", "embed", "hr", "img", "input", "isindex",
                          "keygen", "link", "meta", "param", "source", "track", "wbr"))
# Elements that are common without attributes and without an end tag.
_ALONE: Final = frozenset(("br", "hr", "p", "wbr"))
# Elements whose end tag may be left out, and the elements that must then be around them.
_INSIDE: Final = {
    "li": ("ul", "ol", "menu", "dir"), "dt": ("dl",), "dd": ("dl",), "td": ("table",), "th": ("table",),
    "tr": ("table",), "tbody": ("table",), "thead": ("table",), "tfoot": ("table",), "colgroup": ("table",),
    "option": ("select",), "optgroup": ("select",),
}
# The parser would drop the text after these.
_DROPPED: Final = frozenset(("frame", "frameset", "noframes", "plaintext"))
_OTHERS: Final = (
    "a", "abbr", "acronym", "applet", "audio", "b", "bdi", "bdo", "big", "blink", "button", "canvas", "caption",
    "cite", "code", "data", "datalist", "del", "dfn", "em", "font", "i", "ilayer", "ins", "kbd", "label", "layer",
    "legend", "map", "mark", "marquee", "meter", "nobr", "noembed", "output", "picture", "progress", "q", "rp", "rt",
    "ruby", "s", "samp", "select", "slot", "small", "spacer", "span", "strike", "strong", "sub", "sup", "textarea",
    "time", "tt", "u", "var", "video", "xmp",
)
_FLAGS: Final = (
    "allowfullscreen", "async", "autofocus", "autoplay", "checked", "compact", "controls", "declare", "default",
    "defer", "disabled", "download", "formnovalidate", "hidden", "inert", "ismap", "itemscope", "loop", "multiple",
    "muted", "nohref", "nomodule", "noresize", "noshade", "novalidate", "nowrap", "open", "readonly", "required",
    "reversed", "selected",
)
# fmt: on
_KNOWN: Final = frozenset((*_BLOCKS, *_SILENT, *_VOID, *_INSIDE, *_DROPPED, *_OTHERS))
_CELLS: Final = frozenset(("td", "th"))
# An attribute needs a value, unless it is one of those without: so `a <b and c> d` has no tag.
_ATTRIBUTES: Final = (
    r"(?:\s*+(?:[^\s\"'<>/=`]++\s*+=\s*+(?:\"[^\"<]*+\"|'[^'<]*+'|[^\s\"'<>`]++)"
    rf"|(?:{'|'.join(_FLAGS)})(?=[\s/>])|/))*+\s*+>"
)
_NAME: Final = r"(?:[A-Za-z][A-Za-z0-9]*+|(?:o|v|w|m|x|st1|st2|xml|fb):[A-Za-z][A-Za-z0-9]*+)(?=[\s/>])"
_OTHER_MARKUP: Final = (
    r"<!--(?P<comment>.*?)-->|<!\[CDATA\[(?P<data>.*?)\]\]>|<!DOCTYPE\b[^<>]*+>"
    r"|<!\[(?:if|endif)\b[^<>]*+>|<\?xml\b[^<>]*+>"
)
_FLAGS_OF_RE: Final = re.IGNORECASE | re.DOTALL
_STRICT: Final = re.compile(
    rf"<(?P<end>/)(?P<end_name>{_NAME})\s*+>|<(?P<name>{_NAME})(?P<rest>{_ATTRIBUTES})|{_OTHER_MARKUP}", _FLAGS_OF_RE
)
# In a document that declares itself HTML, a known name is enough for a tag, whatever its attributes are.
_LENIENT: Final = re.compile(
    rf"<(?P<end>/)(?P<end_name>{_NAME})[^<>]*+>|<(?P<name>{_NAME})(?P<rest>{_ATTRIBUTES}|[^<>]*+>)|{_OTHER_MARKUP}",
    _FLAGS_OF_RE,
)
_DOCUMENT: Final = re.compile(
    r"\A\s*+(?:<\?xml[^<>]*>\s*)?<(?:!DOCTYPE\s+html|html[\s>])"
    r"|(?<![\"'`])<(?:html|body)(?:\s[^<>]*)?>.*(?<![\"'`])</(?:html|body)\s*>",
    _FLAGS_OF_RE,
)
_END_NAME: Final = re.compile(r"</([A-Za-z][A-Za-z0-9]*)")
_START_NAME: Final = re.compile(r"<([A-Za-z][A-Za-z0-9]*)")
_POSSIBLE: Final = re.compile(r"<[A-Za-z/!?]")
_ENTITY: Final = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_NO_ENTITY: Final = re.compile(r"&(?!(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});)")
_LINE_ENDS: Final = re.compile(r"(?:[ \t\r\f\v]*\n)+")
_RUN: Final = re.compile(r"\s+")
# Void elements and those that need no end tag do not count as depth.
_FLAT: Final = frozenset((*_VOID, *_INSIDE, "p"))
_DEEPEST: Final = 2000
_LINES_A_BLOCK: Final = 4
_QUOTES: Final = "\"'`"


class StripHtml(TextMap[TextMapParams]):
    """Keeps the text of HTML: blocks become lines, scripts and styles are removed, entities are decoded once.

    Markup is: tags of known elements with valid attributes, comments, the document type and CDATA sections. A start tag
    without its end tag counts only if the element needs none. All other text stays unchanged, such as `a <b`,
    `<john@example.com>` and `<your name>`. Text with few blocks or none keeps its lines.
    """

    version = 2

    def map(self, text: str) -> str:
        """The text without markup."""
        if "<" in text and _POSSIBLE.search(text):
            markup = _markup_of(text)
            if markup is not None:
                return _text_of(*markup)
        if "&" in text:
            return _ENTITY.sub(lambda match: html.unescape(match.group()), text)
        return text


def _markup_of(text: str) -> tuple[str, bool] | None:
    """The text as HTML in which everything but the markup is escaped, and whether to keep its lines.

    None if it has no markup. Lines are kept if there are few blocks in many lines: a text with some markup in it.
    """
    document = _DOCUMENT.search(text) is not None
    ends = {name.lower() for name in _END_NAME.findall(text)}
    starts = {name.lower() for name in _START_NAME.findall(text)}
    parts: list[str] = []
    end, found, blocks = 0, False, 0
    for token in (_LENIENT if document else _STRICT).finditer(text):
        if not document and _is_quoted(text, token):
            continue
        written = _token(token, document, starts, ends)
        if written is None:
            continue
        found = True
        blocks += (token["name"] or "").lower() in _BLOCKS
        parts += (_escaped(text[end : token.start()], document), written)
        end = token.end()
    if not found:
        return None
    parts.append(_escaped(text[end:], document))
    return "".join(parts), not document and _LINES_A_BLOCK * blocks < text.count("\n")


def _is_quoted(text: str, token: re.Match[str]) -> bool:
    """Whether a token is in quotes, as in a text about HTML: '<br>', "</p>", `<b>`."""
    before = text[token.start() - 1 : token.start()]
    return before in _QUOTES and before != "" and text[token.end() : token.end() + 1] == before


def _token(token: re.Match[str], document: bool, starts: set[str], ends: set[str]) -> str | None:
    """What is passed to the parser for a token; None if it is not markup."""
    if token["data"] is not None:
        return html.escape(token["data"], quote=False)
    name = (token["end_name"] or token["name"] or "").lower()
    if not name or ":" in name:
        return ""
    if name not in _KNOWN:
        return None
    if name in _DROPPED:
        return "" if document else None
    if token["end"]:
        if name in starts or document:
            return f"</{name}>" if name in starts else ""
        return None
    if name in _RAW:
        if name in ends:
            return token.group()
        return "" if document else None
    if document or name in _ALONE or name in ends:
        return token.group()
    if name in _VOID or name == "a":
        return token.group() if "=" in token["rest"] else None
    if any(around in ends for around in _INSIDE.get(name, ())):
        return token.group()
    return None


def _escaped(text: str, document: bool) -> str:
    # Entities without a semicolon are decoded in documents only; in plain text `&copy=2` is part of an address.
    if not document and "&" in text:
        text = _NO_ENTITY.sub("&amp;", text)
    return text.replace("<", "&lt;")


def _too_deep(markup: str) -> bool:
    """Whether elements nest so deep that parsing, which is quadratic in the depth, would take seconds."""
    if markup.count("<") <= _DEEPEST:
        return False
    depth = deepest = 0
    for match in _STRICT.finditer(markup):
        name = (match["end_name"] or match["name"] or "").lower()
        if not name or name in _FLAT:
            continue
        depth += -1 if match["end"] else 1
        deepest = max(deepest, depth)
        depth = max(depth, 0)
    return deepest > _DEEPEST


def _text_of(markup: str, keep_lines: bool) -> str:
    from selectolax.lexbor import LexborHTMLParser

    if _too_deep(markup):
        return _LINE_ENDS.sub("\n", html.unescape(_LENIENT.sub("\n", markup))).strip()
    tree = LexborHTMLParser(markup)
    tree.strip_tags(list(_SILENT))
    root = tree.root
    if root is None:
        return ""
    pieces: list[tuple[bool, str]] = []
    blocks = False
    # An explicit stack: hostile nesting is deeper than Python's recursion limit.
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
            # The parser adds these two elements to every text.
            blocks = blocks or tag not in ("html", "body")
            pieces.append((True, "\n"))
            if tag != "br":
                stack.append(("\n", True))
        elif tag in _CELLS:
            pieces.append((True, " "))
        inside = verbatim or tag in ("pre", "textarea")
        stack.extend((child, inside) for child in reversed(list(node.iter(include_text=True))))
    if not blocks or keep_lines:
        return "".join(piece for _, piece in pieces).strip()
    parts: list[str] = []
    fresh = True
    for verbatim, piece in pieces:
        shown = piece if verbatim else _RUN.sub(" ", piece)
        parts.append(shown if verbatim or not fresh else shown.lstrip())
        fresh = parts[-1].endswith("\n") if parts[-1] else fresh
    return _LINE_ENDS.sub("\n", "".join(parts)).strip()
