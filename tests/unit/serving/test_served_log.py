"""Answers are published in the background, and none is lost without being counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.kit.bus.port import OutgoingEvent
from services.kit.bus.topics import Topic
from services.kit.errors import InvalidArgumentError, UnavailableError
from services.serving.adapters import answer_journal
from services.serving.adapters.answer_journal import AnswerJournal, PendingAnswer
from services.serving.adapters.served_log import BackgroundServedLog
from services.serving.app.ports import Served
from tests.waiting import wait_until


class FakeBus:
    """Takes events, or raises what it is asked to."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.errors: list[Exception] = []
        self.away = False
        self.tried = threading.Event()

    def publish(self, topic: Topic, events: Sequence[OutgoingEvent]) -> None:
        self.tried.set()
        assert topic.name == "tidemill.predictions"
        if self.away:
            raise UnavailableError("no broker")
        if self.errors:
            raise self.errors.pop(0)
        self.answers += [event.key for event in events]


def _served(*numbers: int) -> list[Served]:
    return [Served(f"answers/{n}", "models/m/versions/1", "predict", 1.0, datetime.now(UTC)) for n in numbers]


def _dropped(registry: CollectorRegistry) -> float | None:
    return registry.get_sample_value("prediction_events_dropped_total")


def test_what_was_added_is_published_in_order() -> None:
    bus, registry = FakeBus(), CollectorRegistry()
    log = BackgroundServedLog(bus, registry)
    log.add(_served(1, 2))
    log.add(_served(3))
    log.close()
    assert bus.answers == ["answers/1", "answers/2", "answers/3"]
    assert _dropped(registry) == 0


def test_a_bus_that_comes_back_gets_everything() -> None:
    bus, registry = FakeBus(), CollectorRegistry()
    bus.errors = [UnavailableError("no broker"), UnavailableError("no broker")]
    log = BackgroundServedLog(bus, registry)
    log.add(_served(1, 2))
    wait_until(lambda: not bus.errors, "both errors")
    log.close()
    assert bus.answers == ["answers/1", "answers/2"]
    assert _dropped(registry) == 0


def test_what_the_bus_never_takes_is_counted() -> None:
    bus, registry = FakeBus(), CollectorRegistry()
    bus.errors = [InvalidArgumentError("too large"), RuntimeError("defect")]
    log = BackgroundServedLog(bus, registry)
    log.add(_served(1))
    wait_until(lambda: len(bus.errors) == 1, "the first error")
    log.add(_served(2, 3))
    wait_until(lambda: not bus.errors, "the second error")
    log.add(_served(4))
    log.close()
    assert bus.answers == ["answers/4"]
    assert _dropped(registry) == 3


def test_what_does_not_fit_or_is_left_at_the_end_is_counted() -> None:
    bus, registry = FakeBus(), CollectorRegistry()
    bus.away = True
    log = BackgroundServedLog(bus, registry, capacity=2)
    log.add(_served(1, 2, 3, 4, 5))
    log.close()
    assert bus.answers == []
    assert _dropped(registry) == 5
    assert registry.get_sample_value("prediction_events_waiting") == 0


def test_what_a_process_leaves_is_published_by_the_next_one(tmp_path: Path) -> None:
    bus, registry = FakeBus(), CollectorRegistry()
    bus.away = True
    killed = BackgroundServedLog(bus, registry, AnswerJournal(tmp_path))
    killed.add(_served(1, 2))
    bus.tried.wait(60)
    # Another process, which is still running and keeps its own.
    alive = BackgroundServedLog(bus, CollectorRegistry(), AnswerJournal(tmp_path))
    alive.add(_served(3))
    killed.close()
    assert _dropped(registry) == 0
    (tmp_path / "cut.jsonl").write_text('{"served": {"answer": "answers/4", "model_ver')
    second = FakeBus()
    later = CollectorRegistry()
    after = BackgroundServedLog(second, later, AnswerJournal(tmp_path))
    after.close()
    assert second.answers == ["answers/1", "answers/2"]
    assert _dropped(later) == 1
    bus.away = False
    alive.close()
    assert bus.answers == ["answers/3"]
    assert list(tmp_path.iterdir()) == []


def test_a_journal_under_steady_load_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_journal, "_COMPACT_BYTES", 1000)
    journal = AnswerJournal(tmp_path)
    waiting = [PendingAnswer(item, "") for item in _served(*range(100))]
    for number in range(0, 100, 2):
        journal.add(waiting[number : number + 2])
        journal.published(waiting[number + 1 : number + 2])
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 2000
    journal.close()
    assert [item.served.answer for item in AnswerJournal(tmp_path).take_over()][-1] == "answers/99"


def test_a_process_that_is_killed_leaves_its_answers(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from tests.unit.serving.test_served_log import _served\n"
        "from services.serving.adapters.answer_journal import AnswerJournal, PendingAnswer\n"
        "AnswerJournal(pathlib.Path(sys.argv[1])).add([PendingAnswer(item, '') for item in _served(1, 2)])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env={"PYTHONPATH": os.pathsep.join(sys.path)})
    assert ended.returncode == -signal.SIGKILL
    assert [item.served.answer for item in AnswerJournal(tmp_path).take_over()] == ["answers/1", "answers/2"]


def test_a_write_that_a_full_disk_cuts_off_leaves_no_torn_line(tmp_path: Path) -> None:
    # The kernel ends a write at the limit of a file's size as it does on a full disk: a part of it, then an error.
    code = (
        "import pathlib, resource, sys\n"
        "from tests.unit.serving.test_served_log import _served\n"
        "from services.serving.adapters.answer_journal import AnswerJournal, PendingAnswer\n"
        "one, two, three = ([PendingAnswer(item, '')] for item in _served(1, 2, 3))\n"
        "journal = AnswerJournal(pathlib.Path(sys.argv[1]))\n"
        "journal.add(one)\n"
        "(file,) = pathlib.Path(sys.argv[1]).iterdir()\n"
        "size = file.stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))\n"
        "journal.add(two)\n"
        "assert file.stat().st_size == size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "journal.add(three)\n"
    )
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)
    journal = AnswerJournal(tmp_path)
    assert [item.served.answer for item in journal.take_over()] == ["answers/1", "answers/3"]
    assert journal.unreadable == 0
