"""One HTTP connection: uvicorn's httptools protocol with additional limits.

It limits the size, number and time of headers, the time of bodies, the time that a client leaves a response unread, and
the number of connections. A request that breaks a limit gets an error response if that is still possible. Further input
is then discarded for a moment, so that the client can read the response before the connection is reset.
"""

from __future__ import annotations

import asyncio
import functools
import math
import random
from collections.abc import Callable
from typing import Any, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.http.limits import ConnectionTable
from gateway.limits import HttpLimits

# How long the rest of a refused request is read and discarded before the connection is closed.
_LINGER_S = 2.0
# A response that begins before such a body has arrived keeps the connection: the rest is read and discarded.
_SHORT_BODY = 64 * 1024
_UNKNOWN_SIZE = _SHORT_BODY * 1024  # of a body in chunks

_IDLE, _HEAD, _BODY = range(3)


class _BrokenLimitError(Exception):
    """Ends the parsing of a request that broke a limit; it never leaves this module."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def limited_protocol(limits: HttpLimits, refused: Callable[[str], None]) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn, which creates one instance per connection.

    Args:
        limits: of every connection.
        refused: called with the code of every refusal, for the metrics.
    """
    made = functools.partial(LimitedProtocol, limits, ConnectionTable(limits), refused)
    return cast("type[asyncio.Protocol]", made)


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self, limits: HttpLimits, table: ConnectionTable, refused: Callable[[str], None], *args: Any, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._table = table
        self._count_refusal = refused
        self._counted = False
        self._phase = _IDLE
        # Whether the client asked to keep the connection, and it is not too old for that.
        self._keeps_alive = False
        self._old_at = math.inf
        # The request whose response was to be the last one because of the connection's age.
        self._last: Any = None
        # Of the message being read: size and number of its headers, and the bytes of its body.
        self._head_bytes = self._fields = self._body_bytes = 0
        # Bytes since the parser last made progress: an unfinished head, trailers or a chunk's extension.
        self._moved, self._stalled = False, 0
        self._body_began_at = self._body_moved_at = 0.0
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._broken: _BrokenLimitError | None = None
        # The connection was given up; further input is discarded.
        self._discarding = False

    # The transport's callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        why = self._table.enter(self.client[0] if self.client else None)
        if why is not None:
            self._refuse(_BrokenLimitError(503, "too_many_connections", why), linger=False)
            return
        self._counted = True
        # Varied, so that clients that came together do not reconnect together.
        age_s = self._limits.connection_age_s * random.uniform(0.9, 1.1)  # noqa: S311
        self._old_at = self.loop.time() + age_s
        self._closing = _Closing(self)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        if self._counted:
            self._table.leave(self.client[0] if self.client else None)
            self._counted = False
        self._stop_reading_timer()
        if self._writing is not None:
            self._writing.cancel()
        # Requests that wait for the current one must not begin.
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        if self._discarding or self.parser is None:
            return
        self._unset_keepalive_if_required()
        self._moved = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # upgrades are not supported; the request is answered as an ordinary one
        except httptools.HttpParserError:
            self._refuse(self._broken or _BrokenLimitError(400, "invalid_request", "This is not valid HTTP."))
            return
        self._stalled = 0 if self._moved else self._stalled + len(data)
        if self._stalled > self._limits.header_bytes:
            self._refuse(self._too_large())
        elif self._phase == _BODY:
            self._watch_body()
            if not self.cycle.response_started:
                # A response that begins now says whether the connection ends with it.
                self.cycle.keep_alive = self._keeps_alive and self._rest_is_short()
        elif self._phase == _HEAD or not self._answering:
            self._watch_head()

    def eof_received(self) -> None:
        """The client sends no more."""
        if self._discarding:
            self.transport.close()

    def pause_writing(self) -> None:
        """The client does not read its response."""
        super().pause_writing()
        left = self.transport.get_write_buffer_size()
        self._writing = self.loop.call_later(self._limits.write_timeout_s, self._check_writing, left)

    def resume_writing(self) -> None:
        """The client has read the buffered data."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    # The parser's callbacks

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._phase, self._moved = _HEAD, True
        self._head_bytes = self._fields = self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of its URL."""
        self._grow(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer after a chunked body; trailers are counted and dropped."""
        self._fields += 1
        if self._fields > self._limits.headers:
            raise self._break(431, "too_many_headers", f"A request may have at most {self._limits.headers} headers.")
        self._grow(len(name) + len(value) + 4)
        if self._phase == _HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The headers are complete: the application can start."""
        self._phase, self._moved = _BODY, True
        self._stop_reading_timer()
        self._body_began_at = self._body_moved_at = self.loop.time()
        super().on_headers_complete()
        # uvicorn's cycle closes its transport once the response is written, even if the request is still arriving.
        self.cycle.transport = self._closing  # type: ignore[assignment]
        self._keeps_alive = self.cycle.keep_alive
        self._end_if_old()
        if len(self.pipeline) > self._limits.pipelined:
            raise self._break(400, "too_many_pipelined", "Wait for answers before you send more requests.")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._moved = True
        self._body_bytes += len(body)
        self._body_moved_at = self.loop.time()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._phase, self._moved = _IDLE, True
        self._stop_reading_timer()
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keeps_alive
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is written."""
        if self._discarding:
            self.server_state.total_requests += 1  # requests that waited for this one do not begin
        else:
            super().on_response_complete()

    # Limits

    def _end_if_old(self) -> None:
        """Makes the response to a request the connection's last one if the connection is old.

        It says so (`connection: close`), so a client sends no more on it; a client that has not read this yet keeps its
        connection, for a request that was sent behind would be lost.
        """
        if self._last is not None and not self._last.response_started:
            self._last.keep_alive = True
        self._last = None
        if self._keeps_alive and self.loop.time() >= self._old_at:
            self._last, self._keeps_alive = self.cycle, False
            self.cycle.keep_alive = False

    @property
    def _answering(self) -> bool:
        cycle: Any = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _rest_is_short(self) -> bool:
        if self.cycle.waiting_for_100_continue:
            return False  # the client may leave the body out
        size = int(dict(self.cycle.scope["headers"]).get(b"content-length", _UNKNOWN_SIZE))
        return size - self._body_bytes <= _SHORT_BODY

    def _grow(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.header_bytes:
            self._broken = self._too_large()
            raise self._broken

    def _too_large(self) -> _BrokenLimitError:
        limit = self._limits.header_bytes
        return _BrokenLimitError(431, "headers_too_large", f"The headers of a request may have at most {limit} bytes.")

    def _break(self, status: int, code: str, message: str) -> _BrokenLimitError:
        # The parser wraps it in another error.
        self._broken = _BrokenLimitError(status, code, message)
        return self._broken

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _watch_head(self) -> None:
        if self._reading is None:
            self._reading = self.loop.call_later(self._limits.header_timeout_s, self._check_head)

    def _check_head(self) -> None:
        self._reading = None
        if self._answering:
            self._watch_head()  # the previous response goes first
        elif self._phase == _IDLE and not self._stalled:
            self.transport.close()
        else:
            seconds = self._limits.header_timeout_s
            self._refuse(
                _BrokenLimitError(408, "headers_too_slow", f"The headers did not arrive within {seconds:g} s.")
            )

    def _watch_body(self) -> None:
        if self._reading is None:
            self._reading = self.loop.call_later(self._limits.body_timeout_s, self._check_body)

    def _check_body(self) -> None:
        self._reading = None
        now, limits = self.loop.time(), self._limits
        if self.flow.read_paused:
            # We paused reading ourselves; the timeout restarts when we resume.
            self._body_began_at, self._body_moved_at, self._body_bytes = now, now, 0
        due = self._body_began_at + limits.body_timeout_s + self._body_bytes / limits.body_bytes_per_s
        due = min(due, self._body_moved_at + limits.body_timeout_s)
        if now >= due:
            self._refuse(_BrokenLimitError(408, "body_too_slow", "The body did not arrive fast enough."))
        else:
            self._reading = self.loop.call_later(due - now, self._check_body)

    def _check_writing(self, left_before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= left_before:
            self._count_refusal("answer_not_read")
            self.transport.abort()
        else:
            self._writing = self.loop.call_later(self._limits.write_timeout_s, self._check_writing, left)

    def _refuse(self, why: _BrokenLimitError, *, linger: bool = True) -> None:
        """Gives up the connection and its work, with an error response unless an earlier response is still due."""
        self._count_refusal(why.code)
        mine = not self._answering or (self._phase == _BODY and not self.pipeline and not self.cycle.response_started)
        self.pipeline.clear()
        if self._answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if mine and not self.transport.is_closing():
            self.transport.write(_refusal(why))
        if linger:
            self._linger()
        else:
            self._discarding = True
            self.transport.close()

    def _linger(self) -> None:
        """Closes the connection once the client has finished sending, or after a short time."""
        if self._discarding or self.transport.is_closing():
            return
        self._discarding = True
        self._stop_reading_timer()
        self._unset_keepalive_if_required()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._reading = self.loop.call_later(_LINGER_S, self.transport.close)


class _Closing:
    """A transport for uvicorn's cycles that closes only after the request was read completely or given up.

    Of several pipelined requests the protocol knows only the last one; earlier ones may still be writing responses.
    """

    def __init__(self, protocol: LimitedProtocol) -> None:
        self._protocol = protocol
        self.is_closing = protocol.transport.is_closing

    def write(self, data: bytes) -> None:
        """Sends a part of an answer."""
        if not self._protocol._discarding:
            self._protocol.transport.write(data)

    def close(self) -> None:
        """Closes the connection, now or when the rest of the request has arrived."""
        if self._protocol._phase == _BODY:
            self._protocol._linger()
        else:
            self._protocol.transport.close()


def _refusal(why: _BrokenLimitError) -> bytes:
    kind = "server_error" if why.status >= 500 else "invalid_request_error"
    body = orjson.dumps({"error": {"message": why.message, "type": kind, "param": None, "code": why.code}})
    head = [
        STATUS_LINE[why.status],
        b"content-type: application/json\r\n",
        b"content-length: %d\r\n" % len(body),
        b"connection: close\r\n",
        *([b"retry-after: 2\r\n"] if why.status == 503 else []),
        b"\r\n",
    ]
    return b"".join((*head, body))
