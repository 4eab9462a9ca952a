"""Pages of the console as a browser gets them, rendered from real messages without a gateway."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from gateway.console.rendering import environment, render
from gateway.console.view import ROOT

HOSTILE = "<script>alert('taken')</script><img src=x onerror=alert(1)>\"'&"
LONG = "Aufsichtsratsvorsitzendenstellvertreter" * 200
CHINESE = "房间很干净，服务也好，但是早餐种类太少了"

_VOID = {"meta", "link", "input", "br", "img", "circle", "path", "rect", "line", "polyline"}


class _Page(HTMLParser):
    """Finds the elements, and those that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            assert name != "style", (tag, value)
            if name == "id":
                self.ids.append(value)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def rendered(template: str, **values: Any) -> str:
    """A page, for someone without a key; checked to be well-formed, without inline script or style."""
    common = {
        "root": ROOT,
        "path": ROOT,
        "person": HOSTILE,
        "key": None,
        "form_token": "t",
        "request_id": "r",
        "note": "",
    }
    page = render(environment(), template, **{**common, **values})
    parser = _Page()
    parser.feed(page)
    parser.close()
    assert parser.open == [], parser.open
    assert len(parser.ids) == len(set(parser.ids)), parser.ids
    assert parser.tags.count("script") == 1  # the console's own
    assert "img" not in parser.tags
    return page


def text_of(page: str) -> str:
    """What a person reads, in one line."""
    parser = _Page()
    parser.feed(page)
    return " ".join(" ".join(parser.text).split())
