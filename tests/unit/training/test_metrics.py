"""ROUGE-L in any script."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from services.training.engine.metrics import alone, compared, mean_of, rouge_l


def test_an_english_answer_scores_as_by_googles_package() -> None:
    pairs = [
        ("Bank set to leave rates on hold", "UK interest rates set to remain on hold"),
        ("Man Utd's £5.4m offer - rejected!", "Manchester united_offer of 5.4m was rejecting"),
        ("", "nothing"),
    ]
    theirs = RougeScorer(["rougeL"], use_stemmer=True)
    expected = [theirs.score(reference, answer)["rougeL"].fmeasure for reference, answer in pairs]
    assert rouge_l(*zip(*pairs, strict=True)) == expected


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ("房间很干净", "房间很干净", 1.0),
        ("房间很干净", "房间不干净", 0.8),
        ("房间很干净", "服务好", 0.0),
        ("iPhone 手机", "iphone手机", 1.0),
        ("Москва ждёт", "москва", 2 / 3),
    ],
)
def test_an_answer_in_another_script_is_read_too(reference: str, answer: str, score: float) -> None:
    assert rouge_l([reference], [answer]) == [pytest.approx(score)]


def test_models_are_compared_by_pairs() -> None:
    found = compared(mean_of("accuracy"), alone([1.0, 1.0, 0.0, 1.0]), None, alone([0.0, 1.0, 0.0, 1.0]))
    assert found.champion is not None
    assert found.over_champion is not None
    assert (found.tuned.value, found.champion.value, found.over_champion.value) == (0.75, 0.5, 0.25)
    assert found.over_champion.name == "accuracy_difference"
    # No pair got worse, so the difference cannot be negative, though the two intervals overlap.
    assert found.over_champion.ci_low == 0.0
    assert found.champion.ci_high > found.tuned.ci_low
    assert (found.base, found.over_base) == (None, None)
