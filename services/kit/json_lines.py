"""JSON lines that a program appends to, and that it continues after a kill."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


def continued(path: Path) -> tuple[BinaryIO, list[bytes]]:
    """Opens a file after its last complete line; a line that a kill cut off is taken away.

    Returns:
        The file, to be appended to and closed by the caller, and its complete lines.

    Raises:
        OSError: it cannot be read or written.
    """
    with suppress(FileExistsError):
        path.touch(exist_ok=False)
    file = path.open("r+b")
    try:
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        file.truncate(len(whole))
        file.seek(len(whole))
    except BaseException:
        file.close()
        raise
    return file, whole.splitlines()
