"""Data cards: exact figures, all parts, values that try to be markup, and versions that are not ready."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cleaning.app.ports import Arrival
from services.cleaning.domain.dataset import DatasetSpec, HoldoutSpec
from services.cleaning.domain.record import RawRecord
from services.cleaning.engine.card.markdown import markdown_card
from services.cleaning.engine.card.page import html_card
from services.cleaning.engine.card.statistics import MAX_LABEL_VALUES, CardFigures, PartFigures, language_of
from services.kit.errors import DataLossError, FailedPreconditionError, NotFoundError
from tests.conftest import OpenDatabase
from tests.recipes import parse_operators
from tests.unit.cleaning.test_use_cases import NAME, Harness

HOSTILE = '</svg><script>alert(1)</script>|`#"'
CHINESE = "这家酒店的房间很干净，服务员也非常热情，下次还会再来的"
ENGLISH = "The room was clean and the staff were friendly, so we will come again next year"


@pytest.fixture
def harness(tmp_path: Path, open_service_database: OpenDatabase) -> Harness:
    return Harness(open_service_database("cleaning"), tmp_path / "artifacts")


def built(harness: Harness) -> CardFigures:
    operators = tuple(parse_operators([{"length_filter": {"min_chars": 4}}, "exact_dedup"]))
    harness.datasets.put(NAME, DatasetSpec(("news",), operators, HoldoutSpec(0.3), ("label",)))
    good, bad = {"label": "good"}, {"label": HOSTILE}
    texts = [f"{CHINESE if number % 4 else ENGLISH} {number}" for number in range(40)]
    records = [RawRecord(str(number), "news", text, bad if number % 2 else good) for number, text in enumerate(texts)]
    records += [RawRecord("short", "news", "hm", good), RawRecord("twin", "news", texts[0], good)]
    harness.records.collect([Arrival(record) for record in records])
    name = harness.build()
    harness.work()
    return harness.cards.figures(name)


def test_a_card_counts_every_record_of_every_part(harness: Harness) -> None:
    card = built(harness)
    training, holdout = card.parts["training"], card.parts["hold-out"]
    assert training.records + holdout.records == 40
    assert min(training.records, holdout.records) > 0
    assert card.rejected == {"too_short": 1, "exact_duplicate": 1}
    assert card.records_in == 42
    assert sum((training.languages + holdout.languages).values()) == 40
    assert training.languages + holdout.languages == {"zh": 30, "en": 10}
    assert sum(count for _, count in training.histogram()) == training.records
    labels = [part.values["label"] for part in card.parts.values()]
    assert all(label is not None for label in labels)
    assert sum(label.total() for label in labels if label is not None) == 40
    text = markdown_card(card)
    assert f"| for training | {training.records} |" in text
    assert re.search(r"\| en \| [\d,]+ \| [\d.]+% \| █* \|", text)
    assert "| too\\_short | 1 | 50.0% | ██████████ |" in text
    # No text of a record is in a card.
    assert CHINESE[:6] not in text + html_card(card)


class Reader(HTMLParser):
    """Tags of a page, and whether they nest."""

    VOID = ("meta", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not any(
            name.startswith("on") or "http" in (value or "") for name, value in attrs if name != "http-equiv"
        )
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_value_is_never_markup(harness: Harness) -> None:
    card = built(harness)
    page = html_card(card)
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert "script" not in reader.seen
    assert "svg" in reader.seen
    assert "<script>" not in markdown_card(card)
    rows = [line for line in markdown_card(card).splitlines() if "alert" in line]
    # The bar of a table within a value does not begin another cell.
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [8]


def test_an_attribute_of_many_values_is_counted_only(harness: Harness) -> None:
    part = PartFigures()
    for start in range(0, 2 * MAX_LABEL_VALUES, 10):
        ids = [str(number) for number in range(start, start + 10)]
        labels: list[str | None] = ["a", None] * 5
        part.add({"text": ["text"] * 10, "source": ["s"] * 10, "id": ids, "label": labels}, 1)
    assert part.values["id"] is None
    assert part.values["label"] == {"a": MAX_LABEL_VALUES}
    assert part.filled == {"id": 2 * MAX_LABEL_VALUES, "label": MAX_LABEL_VALUES}


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60))
def test_quantiles_and_steps_are_those_of_the_sorted_lengths(lengths: list[int]) -> None:
    part = PartFigures()
    part.add({"text": ["x" * length for length in lengths], "source": ["s"] * len(lengths)}, 10**9)
    ordered = sorted(lengths)
    assert part.quantile(0.5) == ordered[(len(ordered) - 1) // 2]
    assert part.quantile(1) == ordered[-1]
    assert sum(count for _, count in part.histogram()) == len(lengths)


@given(st.text(max_size=200))
def test_any_text_has_a_language_or_none(text: str) -> None:
    assert re.fullmatch("[a-z]{2}|unknown", language_of(text))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "unknown"),
        ("12 + 3", "unknown"),
        ("[PATIENT_INFO]，因急性心肌梗死入院，既往有脑出血病史。", "zh"),
        (CHINESE, "zh"),
        (ENGLISH, "en"),
    ],
)
def test_languages(text: str, wanted: str) -> None:
    assert language_of(text) == wanted


def test_an_empty_part_has_a_card_and_a_version_that_is_not_ready_has_none(harness: Harness) -> None:
    harness.put()
    name = harness.build()
    with pytest.raises(FailedPreconditionError, match="only a version that is ready has a card"):
        harness.cards.figures(name)
    harness.work()
    card = harness.cards.figures(name)
    assert [part.records for part in card.parts.values()] == [0, 0]
    assert "No records." in markdown_card(card)
    assert json.dumps(html_card(card))
    (next((harness.folder / "datasets").rglob("train.parquet"))).unlink()
    with pytest.raises(DataLossError, match=r"train\.parquet: it is missing"):
        harness.cards.figures(name)


def test_rejected_records_are_named_for_each_reason(harness: Harness) -> None:
    built(harness)
    more = [RawRecord(f"tiny{number}", "news", "hm", {"label": "good"}) for number in range(9)]
    harness.records.collect([Arrival(record) for record in more])
    name = harness.build()
    harness.work()
    found = harness.cards.rejections(name, 5)
    assert {reason: len(rows) for reason, rows in found.items()} == {"too_short": 5, "exact_duplicate": 1}
    (twin,) = found["exact_duplicate"]
    assert (twin.source, twin.operator) == ("news", "exact_dedup")
    assert twin.record_id in ("twin", "0")
    assert {row.operator for row in found["too_short"]} == {"length_filter"}
    assert len(harness.cards.rejections(name, 100)["too_short"]) == 10
    with pytest.raises(NotFoundError):
        harness.cards.rejections("datasets/reviews/versions/99", 5)
