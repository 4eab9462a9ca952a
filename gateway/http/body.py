"""Reads request bodies: limited in size and by the budget of all current bodies, and decompressed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from starlette.requests import Request

from gateway.http.limits import BodyLease
from services.kit.errors import InvalidArgumentError

# Key of a request's lease in its ASGI scope, set by `Door`.
LEASE_KEY = "tidemill.body"

# Bytes that are decompressed at a time, so that a decompression bomb is noticed before it fills the memory.
_PIECE = 256 * 1024
_WINDOWS = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


async def body_of(request: Request) -> bytes | bytearray:
    """The whole body, decompressed.

    Raises:
        InvalidArgumentError: it is larger than the gateway's limit, or not what its Content-Encoding says.
        UnavailableError: other requests' bodies use the memory that it needs.
    """
    lease: BodyLease = request.scope[LEASE_KEY]
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return await _whole(request, lease, None)
    if encoding not in _WINDOWS:
        raise InvalidArgumentError(
            f"Content-Encoding {encoding[:40]} is not supported; use gzip or deflate.", reason="UNSUPPORTED_ENCODING"
        )
    decoder = _Decoder(encoding)
    try:
        whole = await _whole(request, lease, decoder.feed)
    except zlib.error as error:
        raise InvalidArgumentError(f"The body is not valid {encoding}: {error}", reason="INVALID_ENCODING") from error
    if not decoder.complete:
        raise InvalidArgumentError(f"The {encoding} body ends too early.", reason="INVALID_ENCODING")
    return whole


async def _whole(
    request: Request, lease: BodyLease, decode: Callable[[bytes], Iterator[bytes]] | None
) -> bytes | bytearray:
    whole: bytes | bytearray = b""
    async for part in request.stream():
        for piece in (part,) if decode is None else decode(part):
            lease.hold(len(whole) + len(piece))
            if not whole:  # most bodies have one piece, which need not be copied
                whole = piece
            elif isinstance(whole, bytearray):
                whole += piece
            else:
                whole = bytearray(whole)
                whole += piece
    return whole


class _Decoder:
    """Decompresses; a gzip file may have several members."""

    def __init__(self, encoding: str) -> None:
        self._wbits = _WINDOWS[encoding]
        self._decoder = zlib.decompressobj(wbits=self._wbits)

    @property
    def complete(self) -> bool:
        """Whether the compressed data is complete."""
        return self._decoder.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decompresses further data.

        Raises:
            zlib.error: it is not valid.
        """
        while data:
            if self._decoder.eof:
                self._decoder = zlib.decompressobj(wbits=self._wbits)
            yield self._decoder.decompress(data, _PIECE)
            data = self._decoder.unused_data if self._decoder.eof else self._decoder.unconsumed_tail
