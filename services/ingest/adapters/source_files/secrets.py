"""Secrets of sources, by name. A pipeline file names one and never contains it; the operator says where it is sent."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from services.kit.errors import FailedPreconditionError

_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
_VALUE = re.compile(r"[\x20-\x7e]{1,8192}")


@dataclass(frozen=True, slots=True)
class Secret:
    """A header that is sent to addresses below a URL, and to no other."""

    url: str
    header: str
    value: str = field(repr=False)

    def headers(self, url: str) -> Mapping[str, str]:
        """The headers of a request to a URL."""
        own, other = urlsplit(self.url), urlsplit(url)
        same = (own.scheme, own.hostname, own.port or _port(own.scheme)) == (
            other.scheme.lower(),
            other.hostname,
            other.port or _port(other.scheme),
        )
        below = other.path == own.path or other.path.startswith(own.path.rstrip("/") + "/")
        return {self.header: self.value} if same and below else {}


class SourceSecrets:
    """The secrets of a file, which is read at each use, so that a changed one counts at once."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    def named(self, name: str) -> Secret:
        """The secret of this name.

        Raises:
            FailedPreconditionError: there is none, or the file is missing, damaged or open to others.
        """
        if self._path is None:
            raise _wrong(f"No secret {name!r} is known: set TIDEMILL_SOURCE_SECRETS_FILE.")
        try:
            if self._path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise _wrong(f"{self._path} can be read by other users; run chmod 600 on it.")
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except OSError as error:
            raise _wrong(f"{self._path} (TIDEMILL_SOURCE_SECRETS_FILE) cannot be read: {error.strerror}.") from error
        except ValueError as error:
            # Without the error's own words, which quote the file.
            raise _wrong(f"{self._path} is not valid JSON.") from error
        given = found.get(name) if isinstance(found, dict) else None
        if not isinstance(given, dict):
            raise _wrong(f"{self._path} has no secret {name!r}.")
        url, header, value = given.get("url"), given.get("header", "Authorization"), given.get("value")
        if not isinstance(url, str) or not url.startswith(("https://", "http://")):
            raise _wrong(f"{self._path}: {name}.url must be a URL of https: or http:.")
        if not isinstance(header, str) or not _HEADER.fullmatch(header):
            raise _wrong(f"{self._path}: {name}.header must be the name of a header.")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise _wrong(f"{self._path}: {name}.value must be text in ASCII, on one line.")
        return Secret(url, header, value)


def _port(scheme: str) -> int:
    return 80 if scheme.lower() == "http" else 443


def _wrong(message: str) -> FailedPreconditionError:
    return FailedPreconditionError(message, reason="SECRET_UNUSABLE")
