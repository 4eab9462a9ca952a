"""The secret of pseudonyms, which a mesh keeps in a file."""

from __future__ import annotations

from pathlib import Path

from services.kit.errors import FailedPreconditionError
from services.masking.pseudonyms import Pseudonyms


def read_pseudonym_key(file: Path | None) -> bytes:
    """The secret of pseudonyms; empty where no file is named.

    Raises:
        FailedPreconditionError: the file cannot be used.
    """
    if file is None:
        return b""
    try:
        key = bytes.fromhex(file.read_text(encoding="utf-8"))
        Pseudonyms(key)
    except (OSError, ValueError) as error:
        raise FailedPreconditionError(
            f"The key of pseudonyms in {file} cannot be used ({error}): put back the file that this mesh had. A new "
            "one would give every address another token.",
            reason="PSEUDONYM_KEY_UNUSABLE",
            metadata={"file": str(file)},
        ) from error
    return key
