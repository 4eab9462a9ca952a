"""Pseudonyms of personal data: equal data gets an equal token, which says nothing of the data without the key.

A text stays usable: who wrote to whom, which card paid twice. Keyed (HMAC-SHA256), because telephone numbers and
identity numbers are few enough to try all of them on a plain hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata
from typing import Final

from services.masking.invisible import INVISIBLE

KEY_BYTES: Final = 32
_LENGTH: Final = 10
"""Hexadecimal digits, 40 bits: of 10,000 persons, two share a token once in 22,000 data sets."""
SUFFIX: Final = rf"-[0-9a-f]{{{_LENGTH}}}"
"""Pattern of what a pseudonym adds to the token of its kind, before the closing bracket."""
_HIDDEN: Final = re.compile(f"[{INVISIBLE}]+")
_NO_ALNUM: Final = re.compile(r"[\W_]+")
# Kinds in which case or punctuation makes a difference: two secrets that differ in case are two secrets.
_EXACT: Final = frozenset({"credential", "url", "ip"})
# With its country's prefix it is the same telephone: China's mobile numbers, and North America's, whose prefix is set
# off, since all of China's begin with a 1.
_COUNTRY: Final = re.compile(r"(?:\+|00)?86\W*(?=1(?:\W*\d){10}$)|(?:\+1|001|1(?=\W))\W*(?=[2-9](?:\W*\d){9}$)")


class Pseudonyms:
    """Replaces the token of a kind by one of what it stands for. Thread-safe."""

    def __init__(self, key: bytes) -> None:
        """Args:
        key: at least `KEY_BYTES` long; the same key gives the same pseudonyms in every process and every year.

        Raises:
            ValueError: it is shorter.
        """
        if len(key) < KEY_BYTES:
            raise ValueError(f"a key of pseudonyms has at least {KEY_BYTES} bytes, not {len(key)}")
        self._key = hmac.new(key, b"personal data", hashlib.sha256).digest()
        self.key_id = hmac.new(key, b"id of the key", hashlib.sha256).hexdigest()[:16]
        """Differs where keys differ, and says nothing of the key."""

    def token(self, token: str, kind: str, found: str) -> str:
        """`[PHONE]` as `[PHONE-3f2a9c10de]`; `token` is in brackets, `found` is the text that it stands for."""
        message = f"{kind}:{_same(kind, found)}".encode("utf-8", "surrogatepass")
        return f"{token[:-1]}-{hmac.new(self._key, message, hashlib.sha256).hexdigest()[:_LENGTH]}{token[-1]}"


def _same(kind: str, found: str) -> str:
    """One spelling for all ways of writing the same thing."""
    plain = _HIDDEN.sub("", unicodedata.normalize("NFKC", found)).strip()
    if kind in _EXACT:
        return plain
    plain = plain.casefold()
    if kind == "email":
        return plain
    if kind == "phone" and (country := _COUNTRY.match(plain)):
        plain = plain[country.end() :]
    return _NO_ALNUM.sub("", plain)
