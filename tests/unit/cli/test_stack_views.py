"""How the parts of the mesh are shown, and which assets a pipeline needs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from gateway.cli.file_inputs import assets_of, missing_assets
from gateway.cli.views.stack import (
    DownloadBars,
    PartsReporter,
    disk_words,
    letter_words,
    loss_words,
    ports_of,
    status_table,
)
from infra.stack.state import ChildPhase, ChildState, StackPhase, StackState
from services.kit.bus.losses import NotedLoss
from services.kit.bus.topics import INBOUND
from services.kit.storage.disk import DiskSpace
from tests.unit.cli.cycles import START, spec

READY = ChildState(ChildPhase.READY, pid=42, restarts=2, started_at=START, ready_at=START + 3.5, healthy=True)
ILL = ChildState(ChildPhase.READY, pid=43, started_at=START, healthy=False, health="no answer within 2 s")
PORTS = {"kafka": 9092, "gateway": 7100, "gateway_http": 8080, "ingest": 7101, "ingest_metrics": 7201}


def test_status_shows_every_part() -> None:
    stack = StackState(
        StackPhase.READY, Path("/home"), Path("/state"), ports=PORTS, children={"kafka": READY, "gateway": ILL}
    )
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture:
        console.print(status_table(stack, START + 65, 100))
    kafka, gateway = capture.get().splitlines()[1:3]
    for part in ("kafka", "healthy", "42", "9092", "2", "1:05"):
        assert part in kafka
    for part in ("gateway", "unhealthy", "7100 8080", "no answer within 2 s"):
        assert part in gateway


def test_lost_messages_are_reported_with_their_count_and_what_to_do() -> None:
    loss = NotedLoss(INBOUND.name, "tidemill-ingest", 7, datetime(2026, 1, 2, tzinfo=UTC))
    words = loss_words(loss).plain
    assert words.startswith("Up to 7 messages of tidemill.inbound were deleted before tidemill-ingest had read them")
    assert "send their events again" in words
    assert "tidemill doctor --repair" in words


def test_ports_are_those_of_callers() -> None:
    assert ports_of("ingest", PORTS) == "7101"
    assert ports_of("nothing", PORTS) == ""


def test_without_a_terminal_a_start_is_reported_in_lines() -> None:
    console = Console(width=100, force_terminal=False)
    waiting = ChildState(ChildPhase.WAITING)
    with console.capture() as capture, PartsReporter(console) as report:
        report("kafka", waiting)
        report("kafka", replace(waiting, phase=ChildPhase.STARTING))
        report("kafka", replace(waiting, phase=ChildPhase.STARTING, pid=7))
        report("kafka", replace(waiting, phase=ChildPhase.RESTARTING, last_error="it crashed"))
        report("kafka", READY)
    lines = capture.get().splitlines()
    assert [line.split()[1].rstrip(":") for line in lines] == ["starting", "restarting", "ready"]
    assert "it crashed" in lines[1]


def test_without_a_terminal_downloads_are_reported_once() -> None:
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture, DownloadBars(console) as bars:
        bars("kafka", 10, 100)
        bars("kafka", 100, 100)
        bars("kafka", 100, 100)
    assert capture.get().split() == ["[assets]", "kafka", "is", "there"]


def test_a_loop_needs_the_programs_its_model_and_its_data() -> None:
    pipeline = spec()
    assert assets_of(pipeline) == ["kafka", "elasticsearch", "smollm2", "bbc"]
    pipeline.training.base_model = "bge-small-zh-v1.5"
    pipeline.sources[0].json_lines.uri = "/home/tidemill/data/reviews/reviews.jsonl"
    assert assets_of(pipeline) == ["kafka", "elasticsearch", "bge-small-zh", "reviews"]
    pipeline.dataset.augment.operators.add(name="random_swap")
    pipeline.dataset.augment.operators.add(name="synonym_replacement").params.update({"tables": ["wordnet", "mine"]})
    assert assets_of(pipeline) == ["kafka", "elasticsearch", "bge-small-zh", "reviews", "wordnet"]
    pipeline.dataset.ClearField("augment")
    pipeline.training.base_model = "/my/own/model"
    pipeline.sources[0].json_lines.uri = "s3://bucket/mine.jsonl"
    assert assets_of(pipeline) == ["kafka", "elasticsearch"]


def test_run_fetches_what_is_missing_and_only_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_HOME", str(tmp_path))
    pipeline = spec()
    pipeline.training.base_model = "bge-small-zh-v1.5"
    pipeline.sources[0].json_lines.uri = str(tmp_path / "data" / "reviews" / "reviews.jsonl")
    assert missing_assets(pipeline) == ["bge-small-zh", "reviews"]
    (tmp_path / "data" / "reviews").mkdir(parents=True)
    assert missing_assets(pipeline) == ["bge-small-zh"]
    (tmp_path / "downloads" / "bge-small-zh-v1.5").mkdir(parents=True)
    assert missing_assets(pipeline) == []
    pipeline.dataset.augment.operators.add(name="synonym_replacement").params.update({"tables": ["cilin", "mine"]})
    assert missing_assets(pipeline) == ["cilin"]
    (tmp_path / "data" / "cilin").mkdir()
    assert missing_assets(pipeline) == []
    pipeline.sources[0].text_folder.uri = "/mine/bbc-like"
    assert missing_assets(pipeline) == [], "a folder of the person's own"


def test_a_disk_is_mentioned_before_it_is_full() -> None:
    gib = 2**30
    plenty, scarce, low = (DiskSpace(Path("/state"), 100 * gib, free * gib, 2 * gib) for free in (50, 3, 1))
    assert disk_words(plenty) is None
    assert str(disk_words(scarce)) == (
        "The disk will be full soon: 3.0 GiB of 100.0 GiB are free at /state, 2.0 GiB of them in reserve."
    )
    assert "new records are refused: 1.0 GiB" in str(disk_words(low))


def test_refused_messages_are_mentioned_while_one_is_open() -> None:
    assert letter_words(0) is None
    assert letter_words(None) is None, "not known"
    assert str(letter_words(1)) == "1 message was refused and is open: `tidemill dlq list` shows why."
    assert str(letter_words(1200)) == "1,200 messages were refused and are open: `tidemill dlq list` shows why."
