"""Precision and recall of masking on sentences written by hand, kind by kind, in both languages."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.engine.batch import Column
from services.cleaning.engine.operators.mask_pii import MaskPii
from services.cleaning.engine.registry import default_registry
from services.masking.personal_data import Span
from services.masking.pii_patterns import KINDS

MARKED = re.compile(r"\{([a-z_]+)\|([^{}]*)\}")


def sentences(name: str) -> list[tuple[str, list[Span]]]:
    found = []
    path = Path(__file__).parent / "data" / name
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line:
            continue
        line = line.replace("\\n", "\n")
        text, spans, end = "", [], 0
        for match in MARKED.finditer(line):
            text += line[end : match.start()]
            spans.append(Span(len(text), len(text) + len(match[2]), match[1]))
            text += match[2]
            end = match.end()
        found.append((text + line[end:], spans))
    return found


SENTENCES = sentences("pii.txt")
GENERATED = sentences("pii_generated.txt")
SPEC = OperatorSpec("mask_pii", {"kinds": [kind for kind in KINDS if kind != "url"]})
MASK: MaskPii = default_registry().build(SPEC, 0)


# Each sentence is searched once, and not once for each kind.
spans_in = cache(lambda text: tuple(MASK.data.find(text)))


def test_the_sentences_are_many_and_cover_every_kind() -> None:
    kinds = Counter(span.kind for _, spans in SENTENCES for span in spans)
    assert len(SENTENCES) >= 300
    assert set(kinds) == set(KINDS) - {"url"}
    assert min(kinds.values()) >= 8
    assert sum(not spans for _, spans in SENTENCES) >= 120


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"url"}))
def test_precision_and_recall_of_a_kind(kind: str) -> None:
    recall, precision, errors = figures(SENTENCES, kind)
    assert recall >= 0.99, errors
    assert precision >= 0.97, errors


@pytest.mark.parametrize("kind", sorted({span.kind for _, spans in GENERATED for span in spans}))
def test_precision_and_recall_on_generated_data(kind: str) -> None:
    recall, precision, errors = figures(GENERATED, kind)
    assert recall >= 0.96, errors
    assert precision >= 0.96, errors


def figures(sentences: list[tuple[str, list[Span]]], kind: str) -> tuple[float, float, list[str]]:
    right = missed = wrong = 0
    errors = []
    for text, spans in sentences:
        expected = {span for span in spans if span.kind == kind}
        found = {span: text[span.start : span.end] for span in spans_in(text) if span.kind == kind}
        right += len(expected & found.keys())
        missed += len(expected - found.keys())
        wrong += len(found.keys() - expected)
        if expected != found.keys():
            errors.append(f"{text}: {[*found.values()]}")
    return right / (right + missed), right / (right + wrong), errors


# Pieces of what the patterns look for, to be put together at random.
WORDS = """1 12 2024 138 - . : / ( ) +86 x A 京A @ @b.org :// １３８ ： （ － 密码 password = token 生日 年 月 日
患者 王 ， 男 病历号 护照 passport 微信 QQ 身份证 SSN fe80: :: plate 电话"""
PIECES = [*WORDS.split(), " ", "\n", "\0", "\u3000", "Bearer ", "born "]


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), max_size=4))
def test_texts_that_are_cleared_together_hold_nothing(texts: list[str]) -> None:
    assert list(MASK.map_column(Column(texts))) == [MASK.map(text) for text in texts]


def test_no_sentence_is_cleared_before_it_is_searched() -> None:
    texts = [text for text, _ in SENTENCES + GENERATED]
    for variant in (texts, [f"\n{text}" for text in texts], [f"x {text} x" for text in texts]):
        masked = [MASK.map(text) for text in variant]
        assert list(MASK.map_column(Column(variant))) == masked
        assert [MASK.map_column(Column([text]))[0] for text in variant] == masked
        cuts = [text[: span.end] for text in variant for span in MASK.data.find(text)]
        assert list(MASK.map_column(Column(cuts))) == [MASK.map(text) for text in cuts]
