"""A key's own limits: who waits, and for how long."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.keys.key import ApiKey, KeyLimits
from gateway.keys.limiter import KeyLimiter
from services.kit.errors import ResourceExhaustedError


class ManualClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def key(requests_per_s: float | None = None, concurrent: int | None = None, name: str = "a") -> ApiKey:
    return ApiKey(name, name, "d", datetime.now(UTC), limits=KeyLimits(requests_per_s, concurrent))


def wait(limiter: KeyLimiter, of: ApiKey) -> float:
    with pytest.raises(ResourceExhaustedError) as caught:
        limiter.enter(of)
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


def test_the_time_to_wait_is_the_true_one() -> None:
    clock = ManualClock()
    limiter, limited = KeyLimiter(clock), key(requests_per_s=4)
    for _ in range(4):
        limiter.enter(limited)()
    for _ in range(3):  # asking again costs nothing
        assert wait(limiter, limited) == pytest.approx(0.25)
    clock.now += 0.1
    seconds = wait(limiter, limited)
    assert seconds == pytest.approx(0.15)
    clock.now += seconds + 1e-9
    limiter.enter(limited)()
    assert wait(limiter, limited) == pytest.approx(0.25)


def test_less_than_one_a_second() -> None:
    clock = ManualClock()
    limiter, limited = KeyLimiter(clock), key(requests_per_s=0.1)
    limiter.enter(limited)()
    assert wait(limiter, limited) == pytest.approx(10)


def test_requests_at_once() -> None:
    clock = ManualClock()
    limiter, limited = KeyLimiter(clock), key(concurrent=2)
    first, second = limiter.enter(limited), limiter.enter(limited)
    assert wait(limiter, limited) > 0
    clock.now += 3
    first()
    third = limiter.enter(limited)
    assert wait(limiter, limited) == pytest.approx(0.2 * 3 / 2)  # what they last, by the first that ended
    second()
    third()
    limiter.enter(limited)


def test_keys_do_not_share_and_none_has_no_limit() -> None:
    limiter = KeyLimiter(ManualClock())
    limiter.enter(key(requests_per_s=1))
    limiter.enter(key(requests_per_s=1, name="b"))
    for _ in range(1000):
        limiter.enter(key(name="c"))


def test_the_tokens_of_a_day_end_and_begin_again_at_midnight() -> None:
    calendar = ManualClock()
    calendar.now = 3 * 86400 + 86000.0
    limiter = KeyLimiter(ManualClock(), calendar=calendar)
    limited = ApiKey("a", "a", "d", datetime.now(UTC), limits=KeyLimits(tokens_per_day=100))
    spend = limiter.meter(limited)
    assert spend is not None
    spend(60)
    other = limiter.meter(limited)  # under way when the tokens end
    spend(40)
    with pytest.raises(
        ResourceExhaustedError, match="has used 100; the next day begins at 1970-01-05 00:00 UTC"
    ) as caught:
        limiter.meter(limited)
    assert (caught.value.retry_after_s, caught.value.reason) == (400.0, "TOKENS_PER_DAY")
    calendar.now += 400
    assert limiter.meter(limited) is not None
    # What was under way counts for the day on which it ends.
    assert other is not None
    other(100)
    with pytest.raises(ResourceExhaustedError):
        limiter.meter(limited)
    calendar.now -= 400  # a clock that is set back gives nothing twice
    with pytest.raises(ResourceExhaustedError):
        limiter.meter(limited)


def test_a_key_without_a_limit_of_tokens_is_not_counted() -> None:
    assert KeyLimiter().meter(key(requests_per_s=1)) is None
