"""Pseudonyms of the users that a product names with its requests."""

from __future__ import annotations

import hashlib
import hmac

_LENGTH = 32


def user_key(secret: bytes) -> str:
    """The key of users' pseudonyms, derived from a secret that it does not reveal; hexadecimal."""
    return hmac.new(secret, b"users who ask", hashlib.sha256).hexdigest()


def user_pseudonym(key: str, tenant: str, user: str) -> str:
    """Stands for a user of a tenant; without the key it cannot be computed from the user's name.

    Args:
        key: of `user_key`; without one there is no pseudonym, and the answer is empty.
        tenant: of the caller.
        user: as the caller names them; empty where it names no one.
    """
    if not key or not user:
        return ""
    # The length keeps tenant and user apart.
    message = f"{len(tenant)}:{tenant}{user}".encode()
    return "u-" + hmac.new(bytes.fromhex(key), message, hashlib.sha256).hexdigest()[:_LENGTH]
