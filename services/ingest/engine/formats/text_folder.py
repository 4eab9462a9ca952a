"""Folders of text files, one record per file; no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.ingest.domain.record import MAX_TEXT_BYTES, RawRecord, RecordRefusedError, check_record
from services.ingest.engine.file_format import BOM, DEFAULT_ENCODING, FolderFormat, ReadFile, encoding_violations

# No common text encoding needs more than four times the bytes that UTF-8 needs.
MAX_FILE_BYTES = 4 * MAX_TEXT_BYTES
_GUESSED_FROM_BYTES = 4096


@dataclass(frozen=True)
class TextFolder(FolderFormat[bytes]):
    """A folder tree of text files; a piece is a file, or its beginning if it is longer than `MAX_FILE_BYTES`."""

    pattern: str = "**/*.txt"
    encoding: str = DEFAULT_ENCODING
    field = "text_folder"
    pieces = "files"
    # One byte beyond the limit identifies a long file without reading all of it.
    head_bytes = MAX_FILE_BYTES + 1

    def violations(self) -> Iterator[tuple[str, str]]:
        """See `FileFormat`."""
        yield from super().violations()
        yield from encoding_violations(self.encoding)

    def split(self, file: ReadFile) -> Iterator[tuple[int, bytes]]:
        """See `FileFormat`."""
        yield 0, b"".join(file.chunks)

    def record(self, source: str, file: ReadFile, piece: bytes) -> RawRecord:
        """See `FileFormat`."""
        if len(piece) > MAX_FILE_BYTES:
            raise RecordRefusedError(
                f"The file has more than {MAX_FILE_BYTES} bytes; the limit of a record's text is {MAX_TEXT_BYTES}.",
                reason="TEXT_TOO_LONG",
            )
        record = RawRecord(source, _decode(piece, self.encoding), self.file_attributes(file).result())
        check_record(record)
        return record.identified()


FORMAT = TextFolder


def _decode(content: bytes, encoding: str) -> str:
    try:
        # The byte order mark of some UTF-8 files is not part of the text.
        return content.removeprefix(BOM).decode(encoding)
    except UnicodeError as error:
        guess = _guess_encoding(content)
        hint = f"; it looks like {guess}" if guess else ""
        # Some codecs (idna, for example) do not say where.
        where = f"byte {error.start}: {error.reason}" if isinstance(error, UnicodeDecodeError) else str(error)
        raise RecordRefusedError(
            f"The file is not in {encoding} ({where}){hint}.",
            reason="NOT_DECODABLE",
            metadata={"encoding": encoding, "looks_like": guess},
        ) from error


def _guess_encoding(content: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(content[:_GUESSED_FROM_BYTES]).best()
    return best.encoding if best is not None else ""
