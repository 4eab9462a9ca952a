"""Sessions of the console: who can make one, and when it ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.console.sessions import LIFETIME, Sessions


class Clock:
    def __init__(self) -> None:
        self.time = datetime(2026, 1, 2, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_session_is_read_by_every_process_with_the_same_secret(clock: Clock) -> None:
    session, cookie = Sessions("secret", clock).begin("0123456789ab", "安娜 <b>")
    assert Sessions("secret", clock).read(cookie) == session
    assert (session.key_id, session.person) == ("0123456789ab", "安娜 <b>")
    assert Sessions("another", clock).read(cookie) is None


def test_a_session_ends(clock: Clock) -> None:
    sessions = Sessions("secret", clock)
    _, cookie = sessions.begin("0123456789ab", "")
    clock.time += LIFETIME - timedelta(seconds=2)
    assert sessions.read(cookie) is not None
    clock.time += timedelta(seconds=2)
    assert sessions.read(cookie) is None


def test_a_form_belongs_to_its_session(clock: Clock) -> None:
    sessions = Sessions("secret", clock)
    (one, cookie), (other, _) = sessions.begin("k", ""), sessions.begin("k", "")
    assert sessions.admits(one, sessions.form_token(one))
    assert not sessions.admits(other, sessions.form_token(one))
    assert not sessions.admits(one, cookie.rpartition(".")[2])
    assert not sessions.admits(one, "é")
