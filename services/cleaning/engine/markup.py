"""Which parts of a text are HTML.

In plain text an angle bracket belongs to an address, a comparison or a placeholder, and a text may speak about tags. So
only tags of known elements with valid attributes count, a start tag only with its end tag unless the element needs
none, and an end tag only with a start. Every search goes forward once, so the time is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

# fmt: off
BLOCKS: Final = frozenset(
    (
        "address", "article", "aside", "blockquote", "body", "br", "center", "dd", "details", "dialog", "dir", "div",
        "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header",
        "hgroup", "hr", "html", "li", "main", "menu", "nav", "ol", "option", "p", "pre", "search", "section",
        "summary", "table", "tbody", "tfoot", "thead", "title", "tr", "ul",
    )
)
# Elements whose content is characters up to the first end tag, or is not text of the page: those are silent.
SILENT: Final = frozenset(("iframe", "noscript", "object", "script", "style", "svg", "template"))
_WHOLE: Final = frozenset((*SILENT, "noembed", "textarea", "title", "xmp"))
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
# Markup in documents only: in other texts these are more often something else.
_RARE: Final = frozenset(("frame", "frameset", "noframes", "plaintext"))
_OTHERS: Final = (
    "a", "abbr", "acronym", "applet", "audio", "b", "bdi", "bdo", "big", "blink", "button", "canvas", "caption",
    "cite", "code", "data", "datalist", "del", "dfn", "em", "font", "head", "i", "ilayer", "ins", "kbd", "label",
    "layer", "legend", "map", "mark", "marquee", "meter", "nobr", "output", "picture", "progress", "q", "rp", "rt",
    "ruby", "s", "samp", "select", "slot", "small", "spacer", "span", "strike", "strong", "sub", "sup",
    "time", "tt", "u", "var", "video",
)
_FLAGS: Final = (
    "allowfullscreen", "async", "autofocus", "autoplay", "checked", "compact", "controls", "crossorigin", "declare",
    "default", "defer", "disabled", "download", "formnovalidate", "hidden", "inert", "ismap", "itemscope", "loop",
    "multiple", "muted", "nohref", "nomodule", "noresize", "noshade", "novalidate", "nowrap", "open", "playsinline",
    "popover", "readonly", "required", "reversed", "scoped", "seamless", "selected",
)
# fmt: on
_KNOWN: Final = frozenset((*BLOCKS, *_WHOLE, *_VOID, *_INSIDE, *_RARE, *_OTHERS))
# An attribute needs a value, unless it is one of those without, or one of a framework: so `a <b and c> d` has no tag.
_ATTRIBUTES: Final = (
    r"(?:\s*+(?:[^\s\"'<>/=`]++\s*+=\s*+(?:\"[^\"<]*+\"|'[^'<]*+'|[^\s\"'<>`]++)"
    rf"|(?:{'|'.join(_FLAGS)}|(?:data|v|ng|x|hx|aria)-[\w.:-]++)(?=[\s/>])|/))*+\s*+>"
)
_NAME: Final = r"(?:[A-Za-z][A-Za-z0-9]*+|(?:o|v|w|m|x|st1|st2|xml|fb):[A-Za-z][A-Za-z0-9]*+)(?=[\s/>])"
# Comments and character data are found by their openers; where they end is searched for separately.
_OTHER_MARKUP: Final = r"(?P<opener><!--|<!\[CDATA\[)|<!DOCTYPE\b[^<>]*+>|<!\[(?:if|endif)\b[^<>]*+>|<\?xml\b[^<>]*+>"
_STRICT: Final = re.compile(
    rf"<(?P<end>/)(?P<end_name>{_NAME})\s*+>|<(?P<name>{_NAME})(?P<rest>{_ATTRIBUTES})|{_OTHER_MARKUP}", re.IGNORECASE
)
# In a document that declares itself HTML, a known name is enough for a tag, whatever its attributes are.
_LENIENT: Final = re.compile(
    rf"<(?P<end>/)(?P<end_name>{_NAME})[^<>]*+>|<(?P<name>{_NAME})(?P<rest>{_ATTRIBUTES}|[^<>]*+>)|{_OTHER_MARKUP}",
    re.IGNORECASE,
)
_DECLARED: Final = re.compile(r"\A\s*+(?:<\?xml[^<>]*+>\s*+)?<(?:!DOCTYPE\s+html|html[\s>])", re.IGNORECASE)
_PAGE_START: Final = re.compile(r"(?<![\"'`])<(?:html|body)(?:\s[^<>]*+)?>", re.IGNORECASE)
_PAGE_END: Final = re.compile(r"(?<![\"'`])</(?:html|body)\s*+>", re.IGNORECASE)
_CLOSING: Final = {"<!--": "-->", "<![CDATA[": "]]>"}
_QUOTES: Final = "\"'`"

# How a text speaks about a tag: the tag stands like a word, beside one of these.
_STANDS_BEFORE: Final = re.compile(r"(?:^|[\s,，、:：(（]|[\u3400-\u9fff])$")
_STANDS_AFTER: Final = re.compile(r"[\s,，、.。:：;；)）?？!！]|$|[\u3400-\u9fff]")
_TAG_BEFORE: Final = re.compile(r"(?:\b(?:tags?|elements?)|标签|元素|标记)[ \t:：]*$", re.IGNORECASE)
_WORD_AFTER: Final = re.compile(r"[ \t]*(?:标签|元素|标记)|[ \t]+(?:tags?|elements?)\b", re.IGNORECASE)
_TAG_AFTER: Final = re.compile(
    rf"{_WORD_AFTER.pattern}"
    r"|[ \t]+(?:is|are|means?|stands? for|starts?|begins?|ends?|opens?|closes?|defines?)[ \t]+[a-z]",
    re.IGNORECASE,
)
_NAMED_BEFORE: Final = re.compile(
    r"(?:\b(?:use|uses|using|write|writing|add|put|insert|type|between|with|by|the|an?)[ \t]"
    r"|(?:使用|用|写|插入|加上)[ \t]*)$",
    re.IGNORECASE,
)
_JOINED: Final = re.compile(
    r"[ \t]*(?:(?:\band\b|\bor\b|\bto\b|[,，、/&]|和|与|或|到)[ \t]*)</?[A-Za-z][A-Za-z0-9]*[ \t]*/?>", re.IGNORECASE
)
# The other tag before this one, as `</p>` has it in `<p> and </p>`.
_JOINED_BEFORE: Final = re.compile(
    r"<[A-Za-z][A-Za-z0-9]*>[ \t]*(?:and|or|to|[,，、/&]|和|与|或|到)[ \t]*$", re.IGNORECASE
)
_NEAR: Final = 24
_BARE: Final = re.compile(r"</?[A-Za-z][A-Za-z0-9]*\s*/?>")


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of markup in a text: `start` to `end`, exclusive.

    `kind`: `start` or `end` tag, `whole` for an element with its content, `data` for CDATA, `none` for what has no
    text, such as comments. `name` is in lower case; `inside` are the bounds of the content.
    """

    start: int
    end: int
    kind: str
    name: str = ""
    rest: str = ""
    inside: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Markup:
    """The markup of a text in order; `document`: the text declares itself HTML."""

    tokens: Sequence[Token]
    document: bool


def markup_of(text: str) -> Markup:
    """What of a text is HTML."""
    document = _is_document(text)
    found = list(_found(text, document))
    if document:
        return Markup(found, document)
    last_end = {token.name: token.start for token in found if token.kind == "end"}
    started: set[str] = set()
    starts: list[Token] = []
    for token in found:
        if token.kind == "start" and _counts(token, last_end):
            starts.append(token)
            started.add(token.name)
    kept = set(map(id, starts))
    return Markup(
        [
            token
            for token in found
            if token.kind in ("whole", "data", "none")
            or id(token) in kept
            or (token.kind == "end" and token.name in started)
        ],
        document,
    )


def _is_document(text: str) -> bool:
    if _DECLARED.match(text):
        return True
    first = _PAGE_START.search(text)
    return first is not None and _PAGE_END.search(text, first.end()) is not None


def _found(text: str, document: bool) -> Iterator[Token]:
    """Everything that has the form of markup and is neither quoted nor spoken about."""
    pattern = _LENIENT if document else _STRICT
    finder = _Finder(text)
    begun: set[str] = set()
    place = 0
    while (match := pattern.search(text, place)) is not None:
        place = match.end()
        token = _token(match, finder, document)
        # The end of an element that has begun is markup, whatever the words before it are.
        ends = token is not None and token.kind == "end" and token.name in begun
        if token is None or (not document and not ends and _is_mentioned(text, token)):
            continue
        if token.kind == "start":
            begun.add(token.name)
        place = token.end
        yield token


class _Finder:
    """Finds what closes something; what was once not found is not searched for again."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._missing: set[str] = set()

    def after(self, closing: str, place: int) -> int:
        """Position of a closing text, or -1."""
        if closing in self._missing:
            return -1
        found = self._text.find(closing, place)
        if found < 0:
            self._missing.add(closing)
        return found

    def end_tag(self, name: str, place: int) -> tuple[int, int] | None:
        """Bounds of the next end tag of an element."""
        if name in self._missing:
            return None
        found = re.compile(rf"</{name}(?=[\s/>])[^<>]*+>", re.IGNORECASE).search(self._text, place)
        if found is None:
            self._missing.add(name)
            return None
        return found.span()


def _token(match: re.Match[str], finder: _Finder, document: bool) -> Token | None:
    start, end = match.span()
    if opener := match["opener"]:
        closing = _CLOSING[opener.upper()]
        stop = finder.after(closing, end)
        if stop < 0:
            return None
        kind = "none" if opener == "<!--" else "data"
        return Token(start, stop + len(closing), kind, inside=(end, stop))
    name = (match["end_name"] or match["name"] or "").lower()
    if not name or ":" in name:
        return Token(start, end, "none")
    if name not in _KNOWN:
        return None
    if name in _RARE:
        return Token(start, end, "none") if document else None
    if match["end"]:
        return Token(start, end, "end", name)
    if name in _WHOLE:
        bounds = finder.end_tag(name, end)
        if bounds is not None and not match["rest"].endswith("/>"):
            return Token(start, bounds[1], "whole", name, inside=(end, bounds[0]))
        return Token(start, end, "none") if document or bounds is not None else None
    return Token(start, end, "start", name, match["rest"])


def _is_mentioned(text: str, token: Token) -> bool:
    """Whether a text speaks about a tag: it is in quotes, or stands like a word beside a word for it."""
    start, end = token.start, token.end
    if token.kind == "whole":
        end = token.inside[0]
    before = text[start - 1 : start]
    if before and before in _QUOTES and text[end : end + 1] == before:
        return True
    if token.kind not in ("start", "end", "whole") or not _BARE.fullmatch(text, start, end):
        return False
    left, right = text[max(0, start - _NEAR) : start], text[end : end + _NEAR]
    if not _STANDS_AFTER.match(right) or not _STANDS_BEFORE.search(left):
        return False
    if token.kind == "end":
        return _WORD_AFTER.match(right) is not None or _JOINED_BEFORE.search(left) is not None
    if _TAG_BEFORE.search(left) or _TAG_AFTER.match(right) or _JOINED.match(right):
        return True
    if token.name in BLOCKS and _NAMED_BEFORE.search(left):
        return True
    return _JOINED_BEFORE.search(left) is not None


def _counts(token: Token, last_end: dict[str, int]) -> bool:
    """Whether a start tag in a text that is not a document is markup."""
    name = token.name
    if name in _ALONE or last_end.get(name, -1) > token.start:
        return True
    if name in _VOID or name == "a":
        return "=" in token.rest
    return any(around in last_end for around in _INSIDE.get(name, ()))
