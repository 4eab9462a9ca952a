from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from services.kit.errors import InvalidArgumentError, NotFoundError, UnavailableError
from services.telemetry.adapters.schema import FIELDS, PROPERTIES, TIE_BREAKERS, WORD_FIELDS, template
from services.telemetry.app.ports import Hit, Search, SearchResult
from services.telemetry.app.retention import Sweeper
from services.telemetry.app.search import SearchService
from services.telemetry.domain.days import Retention, Signal


class FakeEvents:
    """As many events of each signal as `counts` says, numbered by their sort value."""

    def __init__(self, **counts: int) -> None:
        self.counts = counts
        self.asked: list[Search] = []
        self.text = ""

    async def find(self, search: Search) -> SearchResult:
        self.asked.append(search)
        count = self.counts.get(search.signal.value, 0)
        begin = int(search.after[0]) + 1 if search.after else 0
        numbers = range(begin, min(begin + search.size, count))
        return SearchResult([Hit({"n": number, "message": self.text}, [str(number)]) for number in numbers], count)


async def test_pages_hold_each_event_once() -> None:
    searches, numbers, token = SearchService(FakeEvents(logs=25)), [], ""
    while True:
        page = await searches.logs("q", 1, 2, 10, token)
        assert page.total == 25
        numbers += [source["n"] for source in page.sources]
        token = page.next_token
        if not token:
            break
    assert numbers == list(range(25))


async def test_a_page_of_large_lines_is_shorter_and_loses_none() -> None:
    events = FakeEvents(logs=40)
    events.text = "x" * 1024 * 1024
    searches, numbers, sizes, token = SearchService(events), [], [], ""
    while True:
        page = await searches.logs("q", 1, 2, 1000, token)
        numbers += [source["n"] for source in page.sources]
        sizes.append(len(page.sources))
        token = page.next_token
        if not token:
            break
    assert numbers == list(range(40))
    assert max(sizes) == 15


async def test_a_line_larger_than_a_page_is_a_page() -> None:
    events = FakeEvents(logs=2)
    events.text = "x" * 20 * 1024 * 1024
    page = await SearchService(events).logs("q", 1, 2, 10, "")
    assert len(page.sources) == 1
    assert page.next_token


async def test_a_page_that_is_just_full_is_the_last() -> None:
    page = await SearchService(FakeEvents(logs=10)).logs("", None, None, 10, "")
    assert len(page.sources) == 10
    assert page.next_token == ""


async def test_a_token_of_other_times_is_refused() -> None:
    searches = SearchService(FakeEvents(logs=25, traces=25))
    token = (await searches.logs("q", 1, 2, 10, "")).next_token
    with pytest.raises(InvalidArgumentError):
        await searches.logs("q", 1, 3, 10, token)
    with pytest.raises(InvalidArgumentError):
        await searches.traces("q", 10, token)


async def test_traces_are_searched_by_their_roots() -> None:
    events = FakeEvents(traces=1)
    await SearchService(events).traces("q", 10, "")
    assert events.asked[0].entries_only
    assert events.asked[0].newest_first


async def test_a_trace_is_its_spans_and_lines_in_order() -> None:
    events = FakeEvents(traces=2, logs=3)
    trace = await SearchService(events).trace("ab")
    assert (len(trace.spans), len(trace.logs), trace.truncated) == (2, 3, False)
    assert {search.signal for search in events.asked} == set(Signal)
    assert all(search.trace_id == "ab" and not search.newest_first for search in events.asked)


@pytest.mark.parametrize("counts", [{"traces": 10_001}, {"traces": 1, "logs": 10_001}])
async def test_a_trace_that_is_larger_than_an_answer_says_so(counts: dict[str, int]) -> None:
    trace = await SearchService(FakeEvents(**counts)).trace("ab")
    assert trace.truncated
    assert max(len(trace.spans), len(trace.logs)) == 10_000


async def test_a_trace_of_log_lines_only_is_known() -> None:
    assert len((await SearchService(FakeEvents(logs=1)).trace("ab")).logs) == 1


async def test_a_trace_that_is_not_stored_says_that_it_may_come_later() -> None:
    with pytest.raises(NotFoundError, match="seconds late") as caught:
        await SearchService(FakeEvents()).trace("ab")
    assert caught.value.reason == "TRACE_NOT_FOUND"


class FakeIndices:
    def __init__(self, *names: str) -> None:
        self.all = list(names)

    async def names(self) -> Sequence[str]:
        return tuple(self.all)

    async def drop(self, name: str) -> None:
        self.all.remove(name)


class NoIndices:
    async def names(self) -> Sequence[str]:
        raise UnavailableError("away")

    async def drop(self, name: str) -> None:
        raise AssertionError


class FixedClock:
    def now(self) -> datetime:
        return datetime(2026, 11, 24, 0, 0, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0


async def test_days_that_are_over_are_deleted_and_nothing_else() -> None:
    kept = ["tidemill-logs-2026.11.24", "tidemill-traces-2026.11.23", "tidemill-logs-2020.01.01-mine", "other"]
    indices = FakeIndices("tidemill-logs-2026.11.22", *kept, "tidemill-traces-2020.01.01")
    gone = await Sweeper(indices, Retention(2), FixedClock()).sweep()
    assert gone == ["tidemill-logs-2026.11.22", "tidemill-traces-2020.01.01"]
    assert indices.all == kept


async def test_a_sweep_that_finds_no_store_says_so() -> None:
    with pytest.raises(UnavailableError):
        await Sweeper(NoIndices(), Retention(2), FixedClock()).sweep()


@pytest.mark.parametrize("signal", Signal)
def test_what_searches_use_is_mapped(signal: Signal) -> None:
    properties = PROPERTIES[signal]
    for name, mapping in properties.items():
        if mapping["type"] == "alias":
            assert mapping["path"] in FIELDS[signal], name
    assert {*WORD_FIELDS[signal], TIE_BREAKERS[signal]} <= FIELDS[signal]
    assert {"@timestamp", "trace.id", "service", "trace"} <= set(properties)


@pytest.mark.parametrize("signal", Signal)
def test_a_mapping_cannot_grow(signal: Signal) -> None:
    assert template(signal)["template"]["mappings"]["dynamic"] is False
