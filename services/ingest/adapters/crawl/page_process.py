"""Reads pages in a process of its own, since the parsers get what strangers wrote: it may use so much time and memory.

`python -m services.ingest.adapters.crawl.page_process` is that process. It knows no settings and no secrets. Requests
and answers are frames: 4 bytes with the length of a JSON header, the header, and after a request the content.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import IO, Any

from services.ingest.app.interrupt import Interrupt
from services.ingest.engine.file_format import BadContentError
from services.ingest.engine.html_page import Page, Sitemap, read_page, read_sitemap

READ_S = 20.0
_FIRST_READ_S = 60.0
"""The first page waits for the libraries to be imported."""
_MEMORY_BYTES = 2 * 1024**3
_LOOK_EVERY_S = 0.2
# What Python needs to find its modules; no setting of the service, and so no secret.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME", "TMPDIR")


class PageProcess:
    """Reads pages and sitemaps, one after another, for one thread. The process starts with the first one."""

    def __init__(self, interrupt: Interrupt, limit_s: float = READ_S) -> None:
        self._interrupt, self._limit_s = interrupt, limit_s
        self._child: subprocess.Popen[bytes] | None = None

    def page(self, content: bytes, address: str, content_type: str, charset: str, robots: str) -> Page:
        """See `read_page`.

        Raises:
            BadContentError: it took too long or too much memory, or broke the parser.
        """
        arguments = {"address": address, "content_type": content_type, "charset": charset, "robots": robots}
        found = self._ask("page", content, arguments)
        return Page(**{**found, "links": tuple(found["links"])})

    def sitemap(self, content: bytes, address: str) -> Sitemap:
        """See `read_sitemap`; also raises what `page` raises."""
        found = self._ask("sitemap", content, {"address": address})
        return Sitemap(tuple(found["pages"]), tuple(found["sitemaps"]))

    def close(self) -> None:
        """Ends the process."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                assert pipe is not None
                # What it has not read is of no use to anyone.
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            child.wait()

    def _ask(self, what: str, content: bytes, arguments: Mapping[str, str]) -> dict[str, Any]:
        limit_s = self._limit_s if self._child is not None else self._limit_s + _FIRST_READ_S
        child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            _send(child.stdin, {"what": what, "size": len(content), "arguments": arguments})
            child.stdin.write(content)
            child.stdin.flush()
            answer = self._answer(child.stdout, time.monotonic() + limit_s)
        except BrokenPipeError:
            answer = None
        except BaseException:
            # It may still be at work on this page, and would answer the next question with it.
            self.close()
            raise
        if answer is None:
            self.close()
            raise BadContentError("PAGE_UNREADABLE", "the process that reads pages ended; the page may be too complex")
        if "reason" in answer:
            raise BadContentError(answer["reason"], answer["message"])
        found: dict[str, Any] = answer["found"]
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        return self._child

    def _answer(self, stream: IO[bytes], until: float) -> dict[str, Any] | None:
        """The next answer; None where the process has ended."""
        data, descriptor = bytearray(), stream.fileno()
        while True:
            self._interrupt.check()
            if time.monotonic() > until:
                message = f"reading it takes longer than {self._limit_s:g} s; the page is too complex"
                raise BadContentError("PAGE_TOO_COMPLEX", message)
            if not select.select([descriptor], [], [], _LOOK_EVERY_S)[0]:
                continue
            # Not by the stream, which would read ahead, or wait for as much as was asked.
            piece = os.read(descriptor, 1 << 20)
            if not piece:
                return None
            data += piece
            if len(data) >= 4 and len(data) >= 4 + int.from_bytes(data[:4], "big"):
                answer: dict[str, Any] = json.loads(data[4:])
                return answer


def _send(stream: IO[bytes], header: Mapping[str, Any]) -> None:
    # Pages may contain halves of surrogate pairs, by their references: as escapes they stay what they are.
    data = json.dumps(header).encode()
    stream.write(len(data).to_bytes(4, "big") + data)
    stream.flush()


def _serve() -> None:
    """Reads what arrives until the service ends."""
    # Ctrl-C ends the service, and that ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What the libraries say about pages quotes them.
    logging.disable(logging.CRITICAL)
    inward, outward = sys.stdin.buffer, sys.stdout.buffer
    while size := inward.read(4):
        request = json.loads(inward.read(int.from_bytes(size, "big")))
        content = inward.read(request["size"])
        _send(outward, _handled(request["what"], content, request["arguments"]))


def _handled(what: str, content: bytes, arguments: Mapping[str, str]) -> dict[str, Any]:
    try:
        made = read_page(content, **arguments) if what == "page" else read_sitemap(content, **arguments)
    except BadContentError as error:
        return {"reason": error.reason, "message": error.message}
    except Exception as error:
        # A page that breaks a library, also by memory or depth, is one page that cannot be read.
        return {"reason": "PAGE_UNREADABLE", "message": f"it cannot be parsed ({type(error).__name__})"}
    return {"found": asdict(made)}


if __name__ == "__main__":
    _serve()
