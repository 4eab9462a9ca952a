"""Spans as a data set has them, what they are measured by, and the baseline that only remembers."""

from __future__ import annotations

import pytest

from services.kit.errors import FailedPreconditionError
from services.kit.spans import Span
from services.training.engine.annotations import Lexicon, spans_of_row
from services.training.engine.metrics import SpanCounts, compared, f1_of, span_counts, span_metrics


def _row(spans: str) -> dict[str, str]:
    return {"record_id": "rec_7", "text": "abcdef", "spans": spans}


def test_spans_are_read_in_their_order() -> None:
    found = spans_of_row(_row('[{"start": 3, "end": 5, "label": "B"}, {"start": 0, "end": 3, "label": "A"}]'), "spans")
    assert found == [Span(0, 3, "A"), Span(3, 5, "B")]
    assert spans_of_row(_row(""), "spans") == []


@pytest.mark.parametrize(
    ("spans", "why"),
    [
        ("{", "cannot be used"),
        ('{"start": 0}', "not a list of objects"),
        ('[{"start": 0, "end": 2}]', "not a list of objects"),
        ('[{"start": true, "end": 2, "label": "A"}]', "not a list of objects"),
        ('[{"start": 4, "end": 7, "label": "A"}]', "not in its text of 6"),
        ('[{"start": 2, "end": 2, "label": "A"}]', "not in its text of 6"),
        ('[{"start": 0, "end": 3, "label": "A"}, {"start": 2, "end": 4, "label": "B"}]', "at 0 and 2 overlap"),
    ],
)
def test_spans_that_cannot_be_used_name_the_record(spans: str, why: str) -> None:
    with pytest.raises(FailedPreconditionError, match=why) as refused:
        spans_of_row(_row(spans), "spans")
    assert "rec_7" in refused.value.message


def test_only_whole_spans_count() -> None:
    wanted = [Span(0, 2, "PER"), Span(4, 6, "LOC")]
    assert span_counts(wanted, [Span(0, 2, "PER"), Span(4, 5, "LOC")]) == SpanCounts(1, 2, 2)
    assert span_counts(wanted, [Span(0, 2, "LOC")]) == SpanCounts(0, 1, 2)


def test_the_metrics_are_over_all_spans_with_an_interval_over_texts() -> None:
    # Precision 3/5, recall 3/4, F1 6/9: seqeval 1.2.2's micro averages of the same counts.
    found = span_metrics([SpanCounts(2, 2, 2), SpanCounts(1, 3, 2), SpanCounts(0, 0, 0)])
    assert found["entity_precision"].value == pytest.approx(0.6)
    assert found["entity_recall"].value == pytest.approx(0.75)
    f1 = found["entity_f1"]
    assert f1.value == pytest.approx(2 / 3)
    assert f1.ci_low < f1.value < f1.ci_high
    assert f1.sample_size == 3


def test_no_spans_at_all_are_nothing_found() -> None:
    assert span_metrics([SpanCounts(0, 0, 0)])["entity_f1"].value == 0.0


def test_a_lexicon_finds_the_longest_that_it_has_seen() -> None:
    lexicon = Lexicon(
        [("New York is in New England", [Span(0, 8, "LOC"), Span(15, 26, "LOC")]), ("York", [Span(0, 4, "PER")])]
    )
    assert lexicon.find("from York to New York") == [Span(5, 9, "PER"), Span(13, 21, "LOC")]


def test_two_models_are_compared_on_the_same_texts() -> None:
    good, bad = [SpanCounts(2, 2, 2)] * 30, [SpanCounts(1, 2, 2)] * 15 + [SpanCounts(2, 2, 2)] * 15
    f1 = f1_of("entity_f1")
    found = compared(f1, good, None, bad)
    assert found.champion is not None
    assert found.over_champion is not None
    assert (found.tuned.value, found.champion.value, found.over_champion.value) == (1.0, 0.75, 0.25)
    assert 0 < found.over_champion.ci_low < 0.25 < found.over_champion.ci_high
    # Paired: the same model has no difference on any resample.
    same = compared(f1, bad, None, bad).over_champion
    assert same is not None
    assert (same.value, same.ci_low, same.ci_high) == (0, 0, 0)
    assert compared(f1, good, None, None).champion is None
