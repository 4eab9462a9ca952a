"""Evaluation by slices: how a hold-out is cut, how slices are measured, and what chance explains."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.training.domain.report import Report
from services.training.engine.metrics import (
    QUADRATIC_KAPPA,
    Measure,
    Score,
    SpanCounts,
    alone,
    compared,
    f1_of,
    mean_of,
    measured,
    ordinal_scores,
)
from services.training.engine.slices import chances_of_worse, cuts, sliced

ACCURACY = mean_of("accuracy")


def rows(**counts: int) -> list[dict[str, str]]:
    """As many rows of each source, one after another."""
    return [{"text": "x", "source": source} for source, count in counts.items() for _ in range(count)]


def test_values_with_few_records_are_pooled() -> None:
    found = cuts(rows(news=30, mail=25, a=3, b=4), "source", 20)
    assert [(each.value, len(each.places), each.pooled_values) for each in found] == [
        ("news", 30, 0),
        ("mail", 25, 0),
        ("", 7, 2),
    ]
    assert found[2].places == tuple(range(55, 62))


def test_an_attribute_of_many_values_has_few_slices() -> None:
    many = [{"text": "x", "tag": f"{at % 40:02}", "id": str(at)} for at in range(2000)]
    found = cuts(many, "tag", 20)
    assert len(found) == 8
    assert [each.value for each in found[:7]] == [f"{at:02}" for at in range(7)]
    assert (found[7].pooled_values, len(found[7].places)) == (33, 33 * 50)
    assert cuts(many, "id", 20) == []


def test_what_would_be_the_whole_is_no_slice() -> None:
    assert cuts(rows(news=50), "source", 20) == []
    assert cuts(rows(news=50), "language", 20) == []
    assert cuts(rows(a=10, b=10), "source", 20) == []
    assert cuts([], "length", 20) == []


def test_records_without_the_attribute_are_a_slice() -> None:
    found = cuts([{"text": "x", "language": "zh"}] * 20 + [{"text": "x", "language": ""}] * 30, "language", 20)
    assert [(each.value, len(each.places), each.pooled_values) for each in found] == [("", 30, 0), ("zh", 20, 0)]


def test_lengths_are_bands_between_quantiles() -> None:
    texts = [{"text": "字" * length} for length in range(1, 101)]
    found = cuts(texts, "length", 20)
    assert [(each.value, len(each.places)) for each in found] == [
        ("1-25 characters", 25),
        ("26-50 characters", 25),
        ("51-75 characters", 25),
        ("76-100 characters", 25),
    ]
    assert [each.value for each in cuts(texts, "length", 40)] == ["1-50 characters", "51-100 characters"]
    # Equal lengths stay together.
    assert cuts([{"text": "ab"}] * 100, "length", 20) == []


@given(
    st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.integers(0, 40)), max_size=200),
    st.integers(0, 30),
    st.sampled_from(["source", "length"]),
)
def test_each_record_is_in_one_slice(made: list[tuple[str, int]], least: int, attribute: str) -> None:
    table = [{"text": "x" * length, "source": source} for source, length in made]
    found = cuts(table, attribute, least)
    if found:
        assert 2 <= len(found) <= 8
        assert sorted(at for each in found for at in each.places) == list(range(len(table)))
        assert len({(each.value, each.pooled_values) for each in found}) == len(found)


def test_a_slice_has_the_metric_of_its_records_and_paired_differences() -> None:
    table = rows(news=20, mail=20, rare=2)
    tuned, base = alone([1.0] * 20 + [0.5] * 20 + [0.0] * 2), alone([0.5] * 42)
    champion = alone([0.75, 0.25] * 10 + [1.0] * 20 + [1.0] * 2)
    found = sliced(ACCURACY, cuts(table, "source", 20), 20, tuned, base, champion)
    by_name, rare = {each.value: each for each in found[:2]}, found[2]
    own = by_name["news"].comparison
    assert own == compared(ACCURACY, tuned[:20], base[:20], champion[:20])
    assert own is not None
    assert own.over_base is not None
    assert own.over_champion is not None
    assert (own.tuned.value, own.over_base.value, own.over_champion.value) == (1.0, 0.5, 0.5)
    assert own.over_champion.sample_size == 20
    assert own.over_champion.ci_low > 0
    chances = {name: each.p_worse for name, each in by_name.items()}
    assert chances["mail"] is not None
    assert chances["mail"] <= 0.001
    assert chances["news"] == 1.0
    # Two records are counted, and say nothing.
    assert (rare.examples, rare.pooled_values, rare.comparison, rare.p_worse) == (2, 1, None, None)
    # Without a champion, nothing is compared with it.
    alone_found = sliced(ACCURACY, cuts(table, "source", 20), 20, tuned, None, None)
    assert {each.p_worse for each in alone_found} == {None}
    assert alone_found[0].comparison is not None
    assert alone_found[0].comparison.over_champion is None


def _spans(draw: random.Random, right: float) -> Score:
    wanted = draw.randrange(4)
    return SpanCounts(sum(draw.random() < right for _ in range(wanted)), wanted, wanted)


def _stars(draw: random.Random, right: float) -> Score:
    wanted = draw.randrange(5)
    return ordinal_scores([wanted], [wanted if draw.random() < right else draw.randrange(5)])[0]


@pytest.mark.parametrize(
    ("measure", "score"),
    [
        (ACCURACY, lambda draw, right: (float(draw.random() < right), 1.0)),
        (f1_of("entity_f1"), _spans),
        (QUADRATIC_KAPPA, _stars),
    ],
)
def test_whatever_the_metric_only_a_slice_that_is_worse_is_found(
    measure: Measure, score: Callable[[random.Random, float], Score]
) -> None:
    draw = random.Random(7)
    champion = [score(draw, 0.9) for _ in range(400)]
    tuned = [score(draw, 0.9 if at < 300 else 0.5) for at in range(400)]
    parts = [range(start, start + 100) for start in range(0, 400, 100)]
    *good, bad = chances_of_worse(measure, tuned, champion, parts)
    assert min(good) > 0.05
    assert bad <= 0.01
    # Exchanged, the models are exchanged.
    assert chances_of_worse(measure, champion, tuned, parts)[3] == 1.0
    assert chances_of_worse(measure, tuned, tuned, parts) == [1.0] * 4
    assert chances_of_worse(measure, tuned, champion, []) == []


def test_one_slice_alone_has_the_p_value_of_the_sign_test() -> None:
    # Of five pairs that differ, all are lost: 1 / 2^5.
    tuned, champion = alone([0.0] * 5 + [1.0] * 15), alone([1.0] * 20)
    assert chances_of_worse(ACCURACY, tuned, champion, [range(20)]) == [pytest.approx(1 / 32, abs=0.012)]


def test_a_model_as_good_as_the_champion_is_rarely_found_worse_on_any_of_many_slices() -> None:
    draw = random.Random(3)
    worse = 0
    for _ in range(100):
        tuned, champion = (alone([float(draw.random() < 0.8) for _ in range(240)]) for _ in range(2))
        # Three attributes with four values each.
        parts = [[at for at in range(240) if at // step % 4 == value] for step in (1, 4, 60) for value in range(4)]
        worse += min(chances_of_worse(ACCURACY, tuned, champion, parts)) <= 0.05
    # 5 % of 100, and three standard deviations.
    assert worse <= 11


def test_a_report_keeps_its_slices() -> None:
    table = rows(news=20, mail=20, rare=2)
    scores = alone([1.0, 0.0] * 21)
    report = Report(
        measured(ACCURACY, scores), slices=sliced(ACCURACY, cuts(table, "source", 20), 20, scores, None, scores)
    )
    assert len(report.slices) == 3
    assert Report.from_json(json.loads(json.dumps(report.to_json()))).slices == report.slices
    earlier = {name: value for name, value in report.to_json().items() if name != "slices"}
    assert Report.from_json(earlier).slices == ()
