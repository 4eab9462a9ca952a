"""The file of keys with which a mesh encrypts the originals of records; cleaning uses it, `tidemill doctor` looks."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from services.kit.errors import FailedPreconditionError
from services.kit.ids import sha256_hex

KEY_BYTES: Final = 32
_OTHERS: Final = 0o077


def key_id(key: bytes) -> str:
    """Names a key without revealing it: 16 hexadecimal digits."""
    return sha256_hex("key of originals", key.hex())[:16]


def read_keys(file: Path) -> list[bytes]:
    """The keys of a file, one of 64 hexadecimal digits a line, the newest last.

    Raises:
        FailedPreconditionError: it cannot be used.
    """
    try:
        if file.stat().st_mode & _OTHERS:
            raise ValueError("others may read it; chmod 600 closes it")
        keys = [bytes.fromhex(line) for line in file.read_text(encoding="utf-8").split()]
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise ValueError("it must have a key of 64 hexadecimal digits a line")
    except (OSError, ValueError) as error:
        raise FailedPreconditionError(
            f"The key of originals in {file} cannot be used ({error}): put back the file that this mesh had.",
            reason="ORIGINALS_KEY_UNUSABLE",
            metadata={"file": str(file)},
        ) from error
    return keys
