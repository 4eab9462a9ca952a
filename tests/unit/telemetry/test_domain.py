from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import InvalidArgumentError
from services.telemetry.domain.days import Retention, Signal, day_of, nanoseconds, timestamp
from services.telemetry.domain.paging import decode_token, encode_token
from services.telemetry.domain.query import qualify_fields
from services.telemetry.domain.severity import level_of, search_words

_DAY_NS = 86_400 * 10**9
_NOW = int(datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()) * 10**9


@pytest.mark.parametrize(
    ("number", "text", "level"),
    [
        (1, "", "trace"),
        (4, "", "trace"),
        (5, "", "debug"),
        (9, "INFO", "info"),
        (12, "", "info"),
        (13, "WARN", "warning"),
        (17, "ERROR", "error"),
        (20, "", "error"),
        (21, "CRITICAL", "critical"),
        (24, "", "critical"),
        (0, "WARN", "warning"),
        (0, " Fatal ", "critical"),
        (0, "Audit", "audit"),
        (0, "", ""),
        (25, "ERROR", "error"),
    ],
)
def test_level_of_a_severity(number: int, text: str, level: str) -> None:
    assert level_of(number, text) == level


def test_a_level_is_found_by_both_words_for_it() -> None:
    assert set(search_words("warning")) == {"warning", "warn"}
    assert set(search_words("critical")) == {"critical", "fatal"}
    assert search_words("info") == ["info"]


def test_index_is_of_the_events_own_day_in_utc() -> None:
    last = 1_795_478_399_999_999_999  # 2026-11-23T23:59:59.999999999Z
    assert Signal.LOGS.index(last) == "tidemill-logs-2026.11.23"
    assert Signal.TRACES.index(last + 1) == "tidemill-traces-2026.11.24"
    assert day_of(Signal.LOGS.index(last)) == date(2026, 11, 23)


@pytest.mark.parametrize(
    "name",
    [
        "tidemill-logs-2026.13.01",
        "tidemill-logs-2026.11.24-copy",
        "x-tidemill-logs-2026.11.24",
        "tidemill-logs-kept",
        "tidemill-metrics-2026.11.24",
    ],
)
def test_no_other_name_is_a_day_of_ours(name: str) -> None:
    assert day_of(name) is None


@given(st.integers(min_value=0, max_value=4_102_444_800 * 10**9))
def test_a_timestamp_keeps_each_nanosecond(time_ns: int) -> None:
    assert nanoseconds(timestamp(time_ns)) == time_ns


def test_timestamps_have_nine_digits() -> None:
    assert timestamp(_NOW + 5) == "2026-11-24T12:00:00.000000005Z"


def test_retention_keeps_this_many_days_with_today() -> None:
    retention, today = Retention(2), date(2026, 11, 24)
    assert not retention.is_over(date(2026, 11, 24), today)
    assert not retention.is_over(date(2026, 11, 23), today)
    assert retention.is_over(date(2026, 11, 22), today)


@pytest.mark.parametrize(
    ("days_off", "word"), [(0, ""), (-1, ""), (-2, "longer than"), (-20_000, "longer than"), (1, ""), (2, "future")]
)
def test_no_event_makes_an_index_that_is_not_kept(days_off: int, word: str) -> None:
    objection = Retention(2).objection(_NOW + days_off * _DAY_NS, _NOW)
    assert word in objection
    assert bool(objection) == bool(word)


_KNOWN = {"level", "service", "service.name", "@timestamp", "_exists_"}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ""),
        ("words only", "words only"),
        ("level:error service:gateway", "level:error service:gateway"),
        ("http.route:x", "labels.http.route:x"),
        ("labels.http.route:x", "labels.http.route:x"),
        ("labels:x", "labels.labels:x"),
        ("service.other:x", "labels.service.other:x"),
        ('"foo:bar" foo:"bar:baz"', '"foo:bar" labels.foo:"bar:baz"'),
        (r'"a \" b:c" d:e', r'"a \" b:c" labels.d:e'),
        ("message:/a:b/ c:d", "labels.message:/a:b/ labels.c:d"),
        (r"/a\/b:c/ d:e", r"/a\/b:c/ labels.d:e"),
        ("(a:b OR -c:d) +e:f !g:h", "(labels.a:b OR -labels.c:d) +labels.e:f !labels.g:h"),
        ("NOT a:(b c)", "NOT labels.a:(b c)"),
        ("@timestamp:[2026-11-24T03:00:00Z TO now] a:b", "@timestamp:[2026-11-24T03:00:00Z TO now] labels.a:b"),
        ('a:{"x]" TO y] b:c', 'labels.a:{"x]" TO y] labels.b:c'),
        (r"one\:two:three", r"labels.one\:two:three"),
        (r"one\:two three", r"one\:two three"),
        ("*:*", "*:*"),
        ("_exists_:foo", "_exists_:foo"),
        ("a:>5 b:<=3", "labels.a:>5 labels.b:<=3"),
        ("gen_ai.request-model:x", "labels.gen_ai.request-model:x"),
        ("标签:值", "labels.标签:值"),
        ('"never closed a:b', '"never closed a:b'),
        ("[1 TO a:b", "[1 TO a:b"),
        ("ends with \\", "ends with \\"),
        ("a:", "labels.a:"),
        (":", ":"),
    ],
)
def test_unknown_fields_are_looked_for_in_the_container(query: str, expected: str) -> None:
    assert qualify_fields(query, _KNOWN, "labels") == expected


@given(st.text(alphabet='ab:"\\/[]{}()+-!^~*? \t.', max_size=40))
def test_qualifying_only_puts_the_container_in(query: str) -> None:
    assert qualify_fields(query, set(), "zz").replace("zz.", "") == query


@given(st.lists(st.text(), min_size=1, max_size=3), st.lists(st.text(), max_size=4))
def test_a_token_gives_its_values_back(after: list[str], search: list[str]) -> None:
    assert decode_token(encode_token(after, search), search) == tuple(after)


def test_a_token_is_of_one_search_only() -> None:
    token = encode_token(["2026-11-24T03:00:00.000000001Z", "x"], ["logs", "level:error"])
    with pytest.raises(InvalidArgumentError, match="another search") as caught:
        decode_token(token, ["logs", "level:info"])
    assert caught.value.reason == "INVALID_PAGE_TOKEN"
    assert caught.value.violations[0].field == "page_token"


@pytest.mark.parametrize("token", ["x", "!!!", "W10", "e30", "WzFd", "bnVsbA", "ä", "WyJhIl0="])
def test_a_token_of_someone_else_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is not a token of this search"):
        decode_token(token, [])
