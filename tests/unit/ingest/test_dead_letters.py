"""Dead letters: pages by filter, what is replayed, what is refused and why, and kills between sending and marking."""

from __future__ import annotations

from datetime import timedelta

import pytest

from services.ingest.adapters.mark_store import SqlMarkStore
from services.ingest.app import dead_letters
from services.ingest.app.dead_letters import DeadLetters
from services.ingest.domain.dead_letter import LetterFilter, LetterState
from services.kit.clock import SystemClock
from services.kit.errors import NotFoundError, UnavailableError
from tests.conftest import OpenDatabase
from tests.dead_letters import BEGIN, MemoryLetters


@pytest.fixture
def log() -> MemoryLetters:
    return MemoryLetters()


@pytest.fixture
def marks(open_service_database: OpenDatabase) -> SqlMarkStore:
    return SqlMarkStore(open_service_database("ingest"))


@pytest.fixture
def letters(log: MemoryLetters, marks: SqlMarkStore) -> DeadLetters:
    return DeadLetters(log, marks, SystemClock())


def all_of(letters: DeadLetters, wanted: LetterFilter, size: int = 3) -> list[int]:
    """Offsets, through all pages."""
    found, before = [], None
    while True:
        page = letters.page(wanted, before, size)
        found += [letter.offset for letter in page.letters]
        if page.before is None:
            return found
        before = page.before


def test_pages_give_each_letter_once_by_reason_service_topic_and_time(log: MemoryLetters, letters: DeadLetters) -> None:
    log.begin = 10
    for number in range(10):
        log.add(reason="A" if number % 2 else "B", service="cleaning" if number > 6 else "ingest")
    log.add(topic="", import_name="imports/i", location="/f.jsonl:3")
    assert all_of(letters, LetterFilter()) == list(range(20, 9, -1))
    assert all_of(letters, LetterFilter(reason="A")) == [19, 17, 15, 13, 11]
    assert all_of(letters, LetterFilter(reason="A", service="cleaning")) == [19, 17]
    assert all_of(letters, LetterFilter(topic="tidemill.inbound", reason="B"), 1) == [18, 16, 14, 12, 10]
    assert all_of(letters, LetterFilter(import_name="imports/i")) == [20]
    since, until = BEGIN + timedelta(minutes=12), BEGIN + timedelta(minutes=15)
    assert all_of(letters, LetterFilter(since=since, until=until)) == [14, 13, 12]
    assert all_of(letters, LetterFilter(reason="none")) == []


def test_a_rare_reason_reads_the_topic_in_parts(
    log: MemoryLetters, letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_SCANNED", 4)
    log.add(reason="RARE")
    for _ in range(20):
        log.add()
    page = letters.page(LetterFilter(reason="RARE"), None, 5)
    assert (page.letters, page.before) == ([], 17)
    assert all_of(letters, LetterFilter(reason="RARE")) == [0]


def test_a_replay_sends_what_came_and_once(log: MemoryLetters, letters: DeadLetters) -> None:
    for _ in range(3):
        log.add()
    outcomes = letters.replay(["dead-letters/2", "dead-letters/0"], "key:anna")
    assert [(each.letter.offset, each.refused) for each in outcomes] == [(2, None), (0, None)]
    # In the order in which they first came, as they were.
    assert log.sent == [log.letters[0], log.letters[2]]
    again = letters.replay(["dead-letters/2", "dead-letters/1"], "mesh")
    assert [each.refused and each.refused.reason for each in again] == ["ALREADY_REPLAYED", None]
    assert [letter.offset for letter in log.sent] == [0, 2, 1]
    assert letters.page(LetterFilter(), None, 9).open_count == 0
    mark = letters.get("dead-letters/0").mark
    assert mark is not None
    assert (mark.state, mark.actor) == (LetterState.REPLAYED, "key:anna")
    assert letters.get("dead-letters/1").content == b"text 1"


def test_what_cannot_be_replayed_says_why_and_stays_open(log: MemoryLetters, letters: DeadLetters) -> None:
    log.add(topic="", import_name="imports/i", location="/data/a.jsonl:7")
    log.add(truncated=True, size=9_000_000)
    log.add(reason="UNREADABLE_MESSAGE", key=None, content=b"")
    log.add(topic="somewhere.else")
    log.add()
    names = [letter.name for letter in log.letters]
    refused = [each.refused for each in letters.replay(names, "mesh")]
    assert [each.reason if each else "" for each in refused] == [
        "NO_SOURCE_TOPIC",
        "TRUNCATED",
        "UNREADABLE_MESSAGE",
        "NO_SOURCE_TOPIC",
        "",
    ]
    assert refused[0] is not None
    assert "Correct /data/a.jsonl:7 and run the pipeline again" in refused[0].message
    assert refused[1] is not None
    assert "beginning of 9000000 bytes" in refused[1].message
    assert [letter.offset for letter in log.sent] == [4]
    assert all_of(letters, LetterFilter(state=LetterState.OPEN)) == [3, 2, 1, 0]
    assert letters.page(LetterFilter(), None, 1).open_count == 4


def test_a_dropped_letter_is_not_open_and_may_still_be_replayed(log: MemoryLetters, letters: DeadLetters) -> None:
    log.add()
    name = log.add().name
    (dropped,) = letters.drop([name], "key:ben")
    assert (dropped.letter.state, dropped.refused) == (LetterState.DROPPED, None)
    (again,) = letters.drop([name], "key:ben")
    assert again.refused is not None
    assert again.refused.reason == "ALREADY_DROPPED"
    assert letters.page(LetterFilter(state=LetterState.OPEN), None, 9).open_count == 1
    (replayed,) = letters.replay([name], "key:ben")
    assert (replayed.letter.state, replayed.refused) == (LetterState.REPLAYED, None)
    (late,) = letters.drop([name], "key:ben")
    assert late.refused is not None
    assert late.refused.reason == "ALREADY_REPLAYED"


def test_one_name_that_does_not_exist_sends_nothing(log: MemoryLetters, letters: DeadLetters) -> None:
    log.begin = 5
    log.add()
    for name in ("dead-letters/4", "dead-letters/6", "dead-letters/no"):
        with pytest.raises(NotFoundError, match=name) as caught:
            letters.replay(["dead-letters/5", name], "mesh")
        assert caught.value.reason == "DEAD_LETTER_NOT_FOUND"
    assert log.sent == []
    assert letters.get("dead-letters/5").mark is None


def test_a_kill_between_sending_and_marking_leaves_it_open(
    log: MemoryLetters, letters: DeadLetters, marks: SqlMarkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = log.add().name

    class KilledError(BaseException):
        """Ends the process at this point."""

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(marks, "mark", killed)
        with pytest.raises(KilledError):
            letters.replay([name], "mesh")
    assert letters.get(name).state is LetterState.OPEN
    letters.replay([name], "mesh")
    # The same message twice: the same id, which its reader handles once.
    assert log.sent == [log.letters[0]] * 2
    assert letters.get(name).state is LetterState.REPLAYED


def test_a_bus_that_does_not_answer_marks_nothing(log: MemoryLetters, letters: DeadLetters) -> None:
    name = log.add().name

    def away() -> None:
        raise UnavailableError("no broker", reason="BUS_UNAVAILABLE")

    log.trouble = away
    with pytest.raises(UnavailableError):
        letters.replay([name], "mesh")
    log.trouble = lambda: None
    assert letters.get(name).state is LetterState.OPEN


def test_marks_are_those_of_one_topic_and_expire_with_its_letters(
    log: MemoryLetters, letters: DeadLetters, marks: SqlMarkStore
) -> None:
    for _ in range(4):
        log.add()
    letters.drop(["dead-letters/0", "dead-letters/1"], "mesh")
    log.log_id = "made again"
    assert letters.get("dead-letters/0").state is LetterState.OPEN
    assert letters.page(LetterFilter(), None, 9).open_count == 4
    letters.drop(["dead-letters/3"], "mesh")
    assert dict(marks.marks("one", 0, 9)) == {}
    del log.letters[:2]
    log.begin = 2
    letters.drop(["dead-letters/2"], "mesh")
    assert sorted(marks.marks("made again", 0, 9)) == [2, 3]
    assert letters.page(LetterFilter(), None, 9).open_count == 0
