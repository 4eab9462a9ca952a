"""A web site on loopback: pages by path, which a test may change, and what was asked of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SENTENCE = "The miller opened the gate at high tide and let the water turn the wheel until the evening came. "


def page(name: str, *links: str, head: str = "", lang: str = "en") -> bytes:
    """A page of HTML with a main text that contains the name, and links in its navigation."""
    anchors = "".join(f'<a href="{link}">{link}</a>' for link in links)
    return (
        f'<html lang="{lang}"><head><title>Title of {name}</title>{head}</head><body><nav>{anchors}</nav>'
        f"<article><h1>{name}</h1><p>This is {name}. {SENTENCE * 4}</p></article></body></html>"
    ).encode()


@dataclass
class Answer:
    """What a path answers; `status` may be taken from several, the last of which is repeated."""

    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=lambda: [200])


class Site:
    """The server; close it at the end."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, int]] = []
        self.before: Callable[[str], None] = lambda _: None
        self.otherwise: Callable[[str], Answer | None] = lambda _: None
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.before(self.path)
                found = site.answers.get(self.path) or site.otherwise(self.path) or Answer(statuses=[404])
                status = found.statuses.pop(0) if len(found.statuses) > 1 else found.statuses[0]
                etag = found.headers.get("ETag")
                if status == 200 and etag and self.headers.get("If-None-Match") == etag:
                    status = 304
                site.asked.append((self.path, status))
                body = b"" if status == 304 else found.body
                self.send_response(status)
                usual = {"Content-Type": "text/html", "Content-Length": str(len(body))}
                for name, value in {**usual, **found.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Not to standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path: str = "/") -> str:
        """The address of a path."""
        return f"http://{self.host}{path}"

    def put(self, path: str, body: bytes = b"", *statuses: int, **headers: str) -> None:
        """Sets what a path answers."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[path] = Answer(body, named, list(statuses) or [200])

    def paths(self, status: int = 0) -> list[str]:
        """What was asked, in order, without robots.txt and the sitemap; of one status if given."""
        own = ("/robots.txt", "/sitemap.xml")
        return [path for path, answered in self.asked if path not in own and status in (0, answered)]

    def close(self) -> None:
        """Ends the server."""
        self._server.shutdown()
        self._server.server_close()
