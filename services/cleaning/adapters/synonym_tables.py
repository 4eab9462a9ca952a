"""Tables of synonyms as files in the format of Cilin: `Aa01A01= 人 人物 人士`, a group on each line."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Final

from services.cleaning.adapters.translator import find_translator
from services.cleaning.engine.augmenter import SynonymTable, Translator

FILE: Final = "synonyms.txt"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LINE: Final = re.compile(r"([A-Za-z]\w*)([=#@])\s+(\S.*)")
# Cilin's first letter: people, things, time and place, abstracts; features; what people feel, think and do. Its K and L
# are function words and forms of address, which nothing may replace. Small letters are WordNet's; `h` is of homophones.
_KINDS: Final = dict(zip("ABCDEFGHIJnvarh", "nnnnavvvvvnvarh", strict=True))
_MAX_BYTES: Final = 64 << 20


class FolderTables:
    """Implements `services.cleaning.engine.augmenter.Tables`: `<folder>/<name>/synonyms.txt`, and folders of models."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def translator(self, name: str) -> Translator:
        """See the protocol."""
        return find_translator(self._folder, name)

    def synonyms(self, name: str) -> SynonymTable:
        """See the protocol. A changed file is read again."""
        path = self._folder / name / FILE
        if _NAME.fullmatch(name) is None:
            raise LookupError(f"{name!r} is not a valid name of a table: use small letters, digits, - and _")
        try:
            state = path.stat()
            if state.st_size > _MAX_BYTES:
                raise LookupError(f"{path} has {state.st_size} bytes, more than {_MAX_BYTES}")
            return _read(path, state.st_mtime_ns, state.st_size)
        except FileNotFoundError as error:
            known = ", ".join(sorted(each.parent.name for each in self._folder.glob(f"*/{FILE}"))) or "none"
            raise LookupError(
                f"the table {name!r} is not there: no file {path} (there are: {known}); `tidemill run` and `tidemill "
                "dataset build` fetch cilin, homophones and wordnet; your own goes to such a path"
            ) from error
        except OSError as error:
            raise LookupError(f"{path} cannot be read: {error.strerror or error}") from error


@lru_cache(maxsize=8)
def _read(path: Path, changed: int, size: int) -> SynonymTable:
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise LookupError(f"{path} is not UTF-8 (byte {error.start})") from error
    groups: list[tuple[str, tuple[str, ...]]] = []
    for number, line in enumerate(lines, 1):
        found = _LINE.fullmatch(line.strip())
        if found is None:
            if line.strip():
                raise LookupError(f"{path}, line {number}: expected a code and words, such as `Aa01A01= 人 人物 人士`")
            continue
        # `#` marks words that are related, `@` a word without synonyms.
        words = tuple(dict.fromkeys(found[3].split()))
        if found[2] == "=" and len(words) > 1 and (kind := _KINDS.get(found[1][0])):
            groups.append((kind, words))
    return SynonymTable(hashlib.sha256(content).hexdigest(), groups)
