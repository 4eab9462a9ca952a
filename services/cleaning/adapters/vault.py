"""Encrypts what is stored of sensitive records, by keys that a mesh keeps in a file (AES-256-GCM, NIST SP 800-38D)."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.kit.errors import DataLossError, FailedPreconditionError
from services.kit.storage.original_keys import KEY_BYTES, key_id, read_keys
from services.kit.whole_files import OWNER_ONLY, create_text

logger = logging.getLogger(__name__)

_NONCE_BYTES: Final = 12


class Vault:
    """Encrypts with the newest of several keys, and decrypts with whichever was used. Thread-safe."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        """`keys`: of 32 bytes, the newest last."""
        self._ciphers = {key_id(key): AESGCM(key) for key in keys}
        self._newest = key_id(keys[-1]) if keys else ""

    @property
    def key_ids(self) -> Collection[str]:
        """The ids of its keys."""
        return self._ciphers.keys()

    def seal(self, text: str, attributes: Mapping[str, str], *place: str) -> tuple[str, bytes]:
        """Encrypts a text and its attributes for one place of the database; they cannot be read at another.

        Returns:
            Id of the key, and the nonce of 12 bytes with what follows it.

        Raises:
            FailedPreconditionError: there is no key.
        """
        if not self._newest:
            raise _missing("", "")
        plain = json.dumps([text, dict(attributes)], ensure_ascii=False, separators=(",", ":")).encode()
        nonce = os.urandom(_NONCE_BYTES)
        return self._newest, nonce + self._ciphers[self._newest].encrypt(nonce, plain, _place(place))

    def open(self, key: str, sealed: bytes, *place: str) -> tuple[str, dict[str, str]]:
        """Decrypts a text and its attributes.

        Raises:
            FailedPreconditionError: the key of this id is missing.
            DataLossError: it is not what was encrypted for this place.
        """
        cipher = self._ciphers.get(key)
        if cipher is None:
            raise _missing(key, " ".join(place[:3]))
        try:
            plain = cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _place(place))
        except InvalidTag as error:
            raise DataLossError(
                f"What is stored encrypted of {' '.join(place[:3])} was changed, or belongs to another record.",
                reason="ORIGINAL_DAMAGED",
                metadata={"key": key},
            ) from error
        text, attributes = json.loads(plain)
        return text, attributes


def open_vault(file: Path, used: Collection[str]) -> Vault:
    """The vault with the keys of a file, which is made at the first start.

    Args:
        file: a key of 64 hexadecimal digits a line, the newest last.
        used: ids of the keys that the database's rows were encrypted with.

    Raises:
        FailedPreconditionError: the file cannot be used, or it is gone and rows need it.
    """
    if not file.exists():
        if used:
            raise _missing(", ".join(sorted(used)), "", file)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # On the disk before anything is encrypted with it.
        create_text(file, secrets.token_hex(KEY_BYTES) + "\n", OWNER_ONLY)
    vault = Vault(read_keys(file))
    if lost := sorted(set(used) - set(vault.key_ids)):
        logger.error("%s lacks the keys %s: what they encrypted cannot be read until they are back", file, lost)
    return vault


def _place(place: Sequence[str]) -> bytes:
    return "\0".join(place).encode()


def _missing(key: str, what: str, file: Path | None = None) -> FailedPreconditionError:
    where = f"{file} is gone" if file else "TIDEMILL_ORIGINALS_KEY_FILE does not have it"
    return FailedPreconditionError(
        f"The key {key or 'of originals'}, with which {what or 'what is stored'} is encrypted, is missing: {where}. "
        "Put the file back that this mesh had; a new one cannot read what the old one encrypted.",
        reason="ORIGINALS_KEY_MISSING",
        metadata={"key": key},
    )
