"""Tags of tokens and spans of texts are two forms of the same, in training and inside Triton."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.spans import Span, spans_of, tags_for, tags_of

# "[CLS]", three characters, a word piece of two, "[SEP]".
_OFFSETS = [(0, 0), (0, 1), (1, 2), (2, 3), (3, 5), (0, 0)]


def test_the_first_token_of_a_span_begins_it() -> None:
    tags = tags_of([Span(0, 2, "PER"), Span(2, 5, "LOC")], _OFFSETS)
    assert tags == [None, "B-PER", "I-PER", "B-LOC", "I-LOC", None]


def test_a_token_that_a_span_only_touches_belongs_to_it() -> None:
    assert tags_of([Span(4, 5, "ORG")], _OFFSETS) == [None, "O", "O", "O", "B-ORG", None]


def test_what_is_beyond_the_longest_text_has_no_tag() -> None:
    assert tags_of([Span(7, 9, "ORG")], _OFFSETS) == [None, "O", "O", "O", "O", None]


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        (["O", "B-PER", "I-PER", "O"], [(1, 3, "PER")]),
        (["B-PER", "B-PER", "O", "O"], [(0, 1, "PER"), (1, 2, "PER")]),
        # The same as seqeval's default and conlleval: an I- that continues nothing begins a span.
        (["I-PER", "I-LOC", "O", "I-LOC"], [(0, 1, "PER"), (1, 2, "LOC"), (3, 4, "LOC")]),
        (["B-PER", "I-LOC", "I-LOC", "B-LOC"], [(0, 1, "PER"), (1, 3, "LOC"), (3, 4, "LOC")]),
    ],
)
def test_spans_follow_from_tags_as_in_the_conll_evaluation(tags: list[str], found: list[tuple[int, int, str]]) -> None:
    offsets = [(at, at + 1) for at in range(len(tags))]
    assert [(s.start, s.end, s.label) for s in spans_of(tags, offsets, [1.0] * len(tags))] == found


def test_the_score_is_the_mean_of_the_tokens() -> None:
    [span] = spans_of(["B-PER", "I-PER"], [(0, 1), (1, 2)], [0.5, 1.0])
    assert span.score == 0.75


def test_each_label_has_two_tags() -> None:
    assert tags_for(["PER", "LOC"]) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.sampled_from(["A", "B"])), max_size=6))
def test_tags_and_back_are_the_same_spans(parts: list[tuple[int, int, str]]) -> None:
    spans, at = [], 0
    for gap, length, label in parts:
        spans.append(Span(at + gap, at + gap + length, label))
        at += gap + length
    offsets = [(n, n + 1) for n in range(at + 2)]
    tags = [tag or "O" for tag in tags_of(spans, offsets)]
    assert spans_of(tags, offsets, [1.0] * len(tags)) == spans
