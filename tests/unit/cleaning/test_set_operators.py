"""Duplicates and contradictions in a set: which record stays, and why the others are dropped, whatever their order."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cleaning.engine.compiler import compile_recipe
from services.cleaning.engine.contamination import measure_contamination
from services.cleaning.engine.operator import SetRecord
from services.cleaning.engine.operators import near_dedup
from services.cleaning.engine.operators.near_dedup import (
    NearDedup,
    NearDedupParams,
    choose_bands,
    shingle_hashes,
)
from services.cleaning.engine.registry import default_registry
from tests.examples import examples
from tests.recipes import parse_operators

WORDS = [f"w{number}" for number in range(400)]


def judge(records: list[SetRecord], *items: object) -> dict[str, str]:
    recipe = compile_recipe(default_registry(), parse_operators(list(items)))
    return {key: f"{r.reason} {r.detail}" for key, r in recipe.judge_set(records).items()}


def record(record_id: str, text: str, label: str = "") -> SetRecord:
    return SetRecord(record_id, text, {"label": label})


def article(seed: int, length: int = 120) -> list[str]:
    return random.Random(seed).choices(WORDS, k=length)


def test_the_smallest_id_of_equal_texts_stays() -> None:
    found = judge([record("c", "Same  text"), record("a", "same TEXT\n"), record("b", "other")], "exact_dedup")
    assert found == {"c": "exact_duplicate duplicate_of=a"}


def test_a_contradiction_drops_all_its_records_and_equal_labels_do_not() -> None:
    records = [record("a", "好", "pos"), record("b", "好 ", "neg"), record("c", "坏", "neg"), record("d", "坏", "neg")]
    found = judge(records, "conflicting_labels", "exact_dedup")
    assert found == {
        "a": "conflicting_labels labels=2",
        "b": "conflicting_labels labels=2",
        "d": "exact_duplicate duplicate_of=c",
    }


def test_powers_and_indices_are_not_digits_of_a_number() -> None:
    for one, other in [("今天10⁵个", "今天105个"), ("2³", "23"), ("x₁0", "x10")]:
        assert judge([record("a", one), record("b", other)], "exact_dedup") == {}


def test_near_duplicates_are_dropped_and_name_the_one_that_stays() -> None:
    words = article(1)
    edited = [*words[:60], "CHANGED", *words[61:]]
    records = [record("b", " ".join(edited)), record("a", " ".join(words)), record("c", " ".join(article(2)))]
    found = judge(records, "near_dedup")
    assert list(found) == ["b"]
    assert found["b"].startswith("near_duplicate duplicate_of=a jaccard=0.9")


def test_chinese_near_duplicates_are_found_without_spaces() -> None:
    text = "酒店的位置非常好，离地铁站只有五分钟的路，房间干净，服务员也很热情，早餐的种类很多，下次还会再来住的"
    records = [
        record("a", text),
        record("b", text.replace("五分钟", "六分钟") + "！"),
        record("c", "屏幕不错，但是键盘的手感很差"),
    ]
    assert list(judge(records, {"near_dedup": {"threshold": 0.7}})) == ["b"]


def test_short_and_empty_texts_are_compared_whole() -> None:
    records = [record("a", "ok"), record("b", "OK!"), record("c", "no"), record("d", "!!"), record("e", "??")]
    assert judge(records, "near_dedup") == {"b": "near_duplicate duplicate_of=a jaccard=1.000"}


def test_texts_without_a_word_at_the_start_are_compared() -> None:
    assert judge([record("a", "-" * 600), record("b", "words after that")], "near_dedup") == {}


DIFFERENT = [
    ("今天北京的最低气温-5度，请注意保暖", "今天北京的最低气温5度，请注意保暖"),
    ("–5°", "5°"),
    ("患者血压>140", "患者血压<140"),
    ("blood pressure > 140", "blood pressure < 140"),
    ("a==b", "a!=b"),
    ("a <= b", "a >= b"),
    ("大盘↑", "大盘↓"),
    ("A→B", "A←B"),
    ("nice :)", "nice :("),
    ("住了一晚:-)", "住了一晚:-("),
]


def test_signs_that_mean_something_make_another_text() -> None:
    for one, other in [
        ("👍👍👍", "👎👎👎"),
        ("-5度", "5度"),
        ("C++", "C#"),
        ("C", "C++"),
        ("100%", "100"),
        ("很好👍", "很好👎"),
        *DIFFERENT,
    ]:
        assert judge([record("a", one), record("b", other)], "near_dedup") == {}
    assert list(judge([record("a", "re-use it, now"), record("b", "re use it now!")], "near_dedup")) == ["b"]
    assert list(judge([record("a", "- item one"), record("b", "item one")], "near_dedup")) == ["b"]


def test_labels_contradict_each_other_whatever_the_punctuation() -> None:
    records = [record("a", "早餐一般。", "pos"), record("b", "早餐一般", "neg"), record("c", "早餐一般👍", "pos")]
    assert set(judge(records, "conflicting_labels")) == {"a", "b"}
    for one, other in [
        *DIFFERENT,
        ("价格1.5元一斤", "价格15元一斤"),
        ("10:30", "1030"),
        ("3.14", "314"),
        ("1/2", "12"),
        ("2³", "23"),
    ]:
        assert judge([record("a", one, "x"), record("b", other, "y")], "conflicting_labels") == {}
    for one, other in [("- 早餐一般", "早餐一般"), ("> quoted", "quoted"), ("Title\n=====", "Title"), ("–5°", "-5°")]:
        assert len(judge([record("a", one, "x"), record("b", other, "y")], "conflicting_labels")) == 2
    assert judge([record("a", "？？", "x"), record("b", "！", "y")], "conflicting_labels") == {}


def test_invisible_characters_hide_no_duplicate() -> None:
    words = article(3)
    hidden = " ".join(word[:1] + "\u00ad\u200b" + word[1:] for word in words)
    assert list(judge([record("a", " ".join(words)), record("b", hidden)], "exact_dedup")) == ["b"]
    assert list(judge([record("a", " ".join(words) + " x"), record("b", hidden)], "near_dedup")) == ["b"]


def test_the_cost_of_a_text_does_not_grow_with_the_texts_of_its_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of one template are alike but not duplicates; each is compared with a bounded number of others."""
    compared = 0
    jaccard = near_dedup._jaccard

    def counting(one: Any, other: Any) -> float:
        nonlocal compared
        compared += 1
        return jaccard(one, other)

    monkeypatch.setattr(near_dedup, "_jaccard", counting)
    rng = random.Random(5)
    frame = article(9, 40)
    texts = [" ".join([*frame, *rng.choices(WORDS, k=25)]) for _ in range(600)]
    list(NearDedup(NearDedupParams.model_validate({"threshold": 0.5})).pairs(texts))
    assert 0 < compared <= 32 * len(texts)


def test_bands_find_a_pair_at_the_threshold() -> None:
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
        bands, rows = choose_bands(threshold, 128)
        assert bands * rows <= 128
        assert 1 - (1 - threshold**rows) ** bands >= 0.95


@examples(30)
@given(st.integers(0, 10_000), st.integers(0, 30))
def test_what_is_found_is_near_and_what_is_near_is_found(seed: int, edits: int) -> None:
    rng = random.Random(seed)
    texts = []
    for number in range(6):
        words = article(seed + number)
        texts.append(" ".join(words))
        for _ in range(rng.randrange(edits + 1)):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        texts.append(" ".join(words))
    finder = NearDedup(NearDedupParams.model_validate({"threshold": 0.6}))
    shingles = [set(shingle_hashes([text], 3, 4).hashes.tolist()) for text in texts]

    def similarity(one: int, other: int) -> float:
        return len(shingles[one] & shingles[other]) / len(shingles[one] | shingles[other])

    found = {position: (other, value) for position, other, value in finder.pairs(texts)}
    for position, (other, value) in found.items():
        assert other < position
        assert other not in found
        assert value == similarity(position, other) >= 0.6
    for position in range(len(texts)):
        if position not in found:
            # Close to the threshold MinHash may miss one of twenty; well above it none.
            assert all(similarity(position, other) < 0.8 for other in range(position) if other not in found)


@examples(30)
@given(st.permutations(range(12)))
def test_the_order_of_arrival_does_not_matter(order: list[int]) -> None:
    records = [
        record(f"r{number:02}", " ".join([*article(number // 3, 60), str(number % 3)]), "x") for number in range(12)
    ]
    expected = judge(records, "conflicting_labels", "exact_dedup", "near_dedup")
    assert len(expected) == 8
    assert judge([records[number] for number in order], "conflicting_labels", "exact_dedup", "near_dedup") == expected


def test_shingles_do_not_depend_on_neighbours() -> None:
    texts = ["One two three four", "", "一二三四五 mixed Text", "中", "a-b_c d"]
    together = shingle_hashes(texts, 3, 4)
    for position, text in enumerate(texts):
        assert together.of(position).tolist() == shingle_hashes([text], 3, 4).hashes.tolist()


def test_the_memory_for_shingles_does_not_grow_with_intermediate_arrays() -> None:
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=5000)) for _ in range(300)]
    tracemalloc.start()
    shingles = shingle_hashes(texts, 3, 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * shingles.hashes.nbytes + 50_000_000


def test_contamination_counts_what_both_sides_hold() -> None:
    words = article(5)
    near = " ".join([*words[:100], "x", *words[101:]])
    train = [" ".join(words), "Exact copy here"]
    found = measure_contamination(train, ["exact  COPY here", near, " ".join(article(6))])
    assert (found.exact_overlap, found.near_overlap) == (1, 2)
    assert measure_contamination([], ["a"]).near_overlap == 0
