"""Decompresses files piece by piece (gzip, bzip2, xz and lz4), with a limit on what a small file may expand to."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, Protocol

from services.ingest.adapters.source_files.port import CHUNK_BYTES, ReadLimits
from services.ingest.engine.file_format import BadContentError

_XZ_MEMORY = 128 * 1024 * 1024


class _Unpacker(Protocol):
    """A decompressor of one stream, in the shape of bz2's and lzma's."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decompressor in that shape."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._full = False

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        # A full piece may leave output inside, even though all input was consumed.
        return not self._inner.unconsumed_tail and not self._full

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self._full = len(piece) == max_length
        return piece


def _lz4() -> Any:
    from lz4.frame import LZ4FrameDecompressor

    return LZ4FrameDecompressor()


_UNPACKERS: dict[str, Callable[[], Any]] = {
    ".gz": _Gzip,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY),
    ".lzma": lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY),
    ".lz4": _lz4,
}
_UNKNOWN = (".zip", ".zst", ".zstd", ".snappy", ".br", ".7z", ".tar", ".tgz", ".rar")
_DAMAGED = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError)


def is_packed(name: str) -> bool:
    """Whether a file is compressed, by its name."""
    return PurePosixPath(name).suffix.lower() in (*_UNPACKERS, *_UNKNOWN)


def unpacked(chunks: Iterator[bytes], name: str, limits: ReadLimits) -> Iterator[bytes]:
    """A file's bytes, decompressed if its suffix says so.

    Raises:
        BadContentError: it is damaged, cut off, compressed in an unsupported way, or expands to far more than its size.
    """
    suffix = name.lower() if name.startswith(".") else PurePosixPath(name).suffix.lower()
    if suffix in _UNKNOWN:
        raise BadContentError(
            "PACKING_NOT_READ", f"files ending in {suffix} are not supported; use {', '.join(_UNPACKERS)}, or none"
        )
    if suffix not in _UNPACKERS:
        yield from _bounded(chunks, limits)
        return
    yield from _bounded(_unpack(chunks, suffix, limits), limits)


def _unpack(chunks: Iterator[bytes], suffix: str, limits: ReadLimits) -> Iterator[bytes]:
    taken = given = 0
    stream: _Unpacker | None = None
    for chunk in chunks:
        taken += len(chunk)
        rest = chunk
        while rest or (stream is not None and not stream.needs_input and not stream.eof):
            if stream is None or stream.eof:
                # Another stream may follow; zeros in between are padding.
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                stream = _UNPACKERS[suffix]()
            piece = _step(stream, rest, suffix, taken)
            rest = stream.unused_data if stream.eof else b""
            given += len(piece)
            if given > limits.unpacked_bytes and given > taken * limits.unpacked_ratio:
                raise BadContentError(
                    "UNPACKS_TOO_LARGE",
                    f"its first {taken} bytes expand to {given}, more than {limits.unpacked_ratio} times as many; "
                    "decompress it yourself if this is intended",
                )
            if piece:
                yield piece
    if stream is None or not stream.eof:
        raise BadContentError(
            "PACKED_FILE_DAMAGED", f"its {suffix[1:]} data end unexpectedly after {taken} bytes; fetch it again"
        )


def _step(stream: _Unpacker, data: bytes, suffix: str, taken: int) -> bytes:
    try:
        return stream.decompress(data, CHUNK_BYTES)
    except _DAMAGED as error:
        raise BadContentError(
            "PACKED_FILE_DAMAGED", f"it is not valid {suffix[1:]} data within its first {taken} bytes ({error})"
        ) from error


def _bounded(chunks: Iterator[bytes], limits: ReadLimits) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limits.file_bytes:
            raise BadContentError(
                "SOURCE_TOO_LARGE",
                f"it contains more than {limits.file_bytes} bytes; split it, or raise TIDEMILL_SOURCE_FILE_BYTES",
            )
        yield chunk
