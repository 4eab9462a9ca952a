"""Signed-in people: a cookie that names an API key, without the key, and that no one else can make.

Nothing is stored. Every process of a gateway reads the same secret, so that each accepts the others' sessions. A
session ends after `LIFETIME`, and with its key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from datetime import timedelta

from services.kit.clock import Clock

COOKIE = "tidemill_console"
LIFETIME = timedelta(hours=12)
MAX_PERSON = 64
"""Characters of a person's name."""


@dataclass(frozen=True, slots=True)
class Session:
    """Who is signed in."""

    key_id: str
    """Empty where the gateway requires no keys."""
    person: str
    """How this person signs reviews; empty if they did not say."""
    nonce: str
    end: int
    """Seconds since 1970."""


class Sessions:
    """Makes and checks sessions."""

    def __init__(self, secret: str, clock: Clock) -> None:
        """Args:
        secret: known to the processes of this gateway only.
        clock: the time.
        """
        self._secret = secret.encode()
        self._clock = clock

    def begin(self, key_id: str, person: str) -> tuple[Session, str]:
        """A new session, and the value of its cookie."""
        end = self._clock.now() + LIFETIME
        session = Session(key_id, person[:MAX_PERSON], secrets.token_urlsafe(16), int(end.timestamp()))
        content = json.dumps([session.key_id, session.person, session.nonce, session.end]).encode()
        text = base64.urlsafe_b64encode(content).decode().rstrip("=")
        return session, f"{text}.{self._sign('session', text)}"

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie; None if it is not one of ours, was changed, or has ended."""
        text, dot, signature = cookie.partition(".")
        if not dot or not _equal(signature, self._sign("session", text)):
            return None
        key_id, person, nonce, end = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        session = Session(key_id, person, nonce, end)
        return session if session.end > self._clock.now().timestamp() else None

    def form_token(self, session: Session) -> str:
        """What a form must carry, which a page of another origin cannot know."""
        return self._sign("form", session.nonce)

    def admits(self, session: Session, token: str) -> bool:
        """Whether a form carries the token of this session."""
        return _equal(token, self.form_token(session))

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._secret, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())
