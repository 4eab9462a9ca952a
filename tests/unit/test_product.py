"""The world and the figures of the example in examples/product."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.product.report import Asked, Quality, quality, recovery, windows
from examples.product.tickets import Kind, World, write_tickets


def asked(at: float, right: bool | None) -> Asked:
    return Asked(at, Kind.HOTEL, right, "models/tickets/versions/1", f"answers/{at}")


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    lines = [
        *({"text": f"房间{n}很干净，早餐也好", "label": "positive"} for n in range(30)),
        *({"text": f"书{n}的作者不知所云", "label": "negative"} for n in range(30)),
        *({"text": f"电脑{n}的键盘很好", "label": "positive"} for n in range(30)),
        {"text": "在酒店房间读书，作者的小说", "label": "positive"},  # of two kinds
        {"text": "还行", "label": "positive"},  # of none
    ]
    file = tmp_path / "reviews.jsonl"
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    return file


def test_customers_write_of_hotels_only_until_the_shop_opens(reviews: Path) -> None:
    world = World(reviews)
    taken = world.take(Kind.HOTEL, 10)
    stream = world.stream()
    before = [next(stream) for _ in range(10)]
    world.drifted = True
    after = list(stream)
    assert {ticket.kind for ticket in before} == {Kind.HOTEL}
    assert {ticket.kind for ticket in after} == set(Kind)
    texts = [ticket.text for ticket in (*taken, *before, *after)]
    assert len(texts) == len(set(texts)), "no text is used twice"
    teams = {ticket.kind: ticket.label for ticket in (*before, *after)}
    assert teams == {Kind.HOTEL: "guest relations", Kind.BOOK: "bookshop", Kind.COMPUTER: "repairs"}


def test_more_tickets_than_there_are_cannot_be_taken(reviews: Path) -> None:
    with pytest.raises(ValueError, match="30 tickets of the kind book are left, 31 are wanted"):
        World(reviews).take(Kind.BOOK, 31)


def test_tickets_become_lines_of_a_pipeline(reviews: Path, tmp_path: Path) -> None:
    tickets = World(reviews).take(Kind.COMPUTER, 2)
    write_tickets(tmp_path / "new" / "tickets.jsonl", tickets)
    found = [json.loads(line) for line in (tmp_path / "new" / "tickets.jsonl").read_text(encoding="utf-8").splitlines()]
    assert found == [{"text": ticket.text, "label": ticket.label} for ticket in tickets]


@pytest.mark.parametrize(
    ("right", "count", "low", "high"), [(0, 5, 0.0, 0.4345), (37, 50, 0.6045, 0.8413), (50, 50, 0.9287, 1.0)]
)
def test_the_interval_is_wilsons(right: int, count: int, low: float, high: float) -> None:
    assert Quality(0, 1, right, count).interval == pytest.approx((low, high), abs=1e-4)


def test_failed_calls_are_no_answers() -> None:
    calls = [asked(1, True), asked(2, False), asked(3, None), asked(45, True)]
    assert quality(calls, 0, 10) == Quality(0, 10, 1, 2)
    assert quality(calls, 20, 30) is None
    assert [(each.begin, each.count) for each in windows(calls)] == [(0, 2), (40, 1)]


def test_recovery_is_counted_from_the_drift() -> None:
    before = [asked(at, at % 2 == 0) for at in range(30)]
    worse = [asked(at, False) for at in range(30, 60)]
    again = [asked(at, True) for at in range(60, 80)]
    assert recovery([*before, *worse, *again], 30) == 50
    assert recovery([*before, *worse], 30) is None
    assert recovery(again, 0) is None, "nothing was before"
