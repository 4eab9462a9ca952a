"""No text makes an operator slow: the processor time of each grows with the text, and not with its square."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import pytest

from services.cleaning.adapters.synonym_tables import FolderTables
from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.engine.augmenter import Augmenter, Draw
from services.cleaning.engine.batch import Batch
from services.cleaning.engine.limits import MAX_TEXT_BYTES
from services.cleaning.engine.operator import Operator, RecordOperator, SetOperator, SetRecord
from services.cleaning.engine.registry import own_augmenters, own_registry
from services.cleaning.engine.rewriter import Rewriter
from services.cleaning.engine.words import Terms, Word, split_words
from services.masking.pii_patterns import KINDS, rules_of

REGISTRY, AUGMENTERS = own_registry(), own_augmenters()
# Each text is eight times as large as the one before: the time of a linear operator is about eight times as long, that
# of a quadratic one 64 times. The largest is tried only where the others leave a doubt.
SIZES: Final = (MAX_TEXT_BYTES // 256, MAX_TEXT_BYTES // 32, MAX_TEXT_BYTES // 4)
DOUBTFUL_GROWTH: Final = 14
MAX_GROWTH: Final = 24
# Seconds below which the middle size does not matter: were it quadratic, a text of MAX_TEXT_BYTES would take a second.
NOISE: Final = 0.001

PARAMS: Final[dict[str, list[dict[str, Any]]]] = {
    "fix_unicode": [{}, {"normalization": "NFKC", "width": "all"}],
    "convert_script": [{}, {"conversion": "s2twp"}, {"conversion": "tw2sp"}],
    "regex_replace": [{"pattern": r"[a-z<&]+\d*", "replacement": "x"}],
    "term_map": [{"terms": {"ab": "c", "中文": "x"}}, {"terms": {f"<{n}": "" for n in range(99)}, "whole_words": True}],
    "drop_if_missing_field": [{"fields": ["label"]}],
    "first_line_to_field": [{"field": "head"}],
    "script_filter": [{"scripts": ["han"]}],
    "length_filter": [{"min_chars": 1, "min_words": 1}],
    "symbol_filter": [{"max_symbols": 0.5, "max_digits": 0.5}],
    "word_filter": [{"words": ["a", "ab1", "a b", "good buy", "中", "的國"], "max_count": 3}],
    "language_filter": [{"languages": ["en"]}],
}
# fmt: off
MARKUP = [
    "<", "<!--", "<!-", "-->", "<![CDATA[", "]]>", "<!DOCTYPE", "<!DOCTYPE ", "<?xml", "<?xml ", "<![if", "<html>",
    "<body>", "<body", "<html ", "<head>", "<a href=", '<a href="', "<a href='", "<p>", "</p>", "<p ", "<p>x",
    "<div>", "<b>", "<b", "</", "</b>", "<a ", "<li>", "<ul>", "<table>", "<td>", "<tr>", "<script>", "<style>",
    "<svg>", "<title>", "<pre>", "<textarea>", "<select>", "<option>", "<p><b>", "<b><p>", "<font size=1>",
    "<a b=c ", "<br>", "<o:p>", "<<", ">>", "<>", "<p> and ", "the <p> tag ", "`<b>` ", "&", "&amp;", "&#", "&#1;",
    "&nosuch;", "&#x",
]
SIGNS = [
    "a", "ab", "ab1", "a b ", "中", "的", "國", "软件", "琌", "é", "Ã©", "Ã", "â€™", "ÖÐ", "Ð»", "√º", "√", "~{",
    "~{VP", "~{VP~}", "-----BEGIN PRIVATE KEY-----",
    "\u0301", "\u0316", "\u0301\u0316", "a\u0301", "\u0344", "\uff9e\u0316", "\u200b", "\u200d", "\u202e",
    "\ufe0f", "\U0001f3f4\U000e0067", "👍\u200d", "\u034f\u0301\u0316", "Ì\x81Ì\x96", "&#769;&#790;", "क\u094d",
    "\u1100\u1161", "ｶﾞ", "Ａ", "！", "…", "“", "’", "\n", "\r", "\r\n", " \n", " ", "\t", "\u3000", "\x00", "\x1b[",
    "-", "+", "=", "1", "1.", "1,", "1:", "1-", "(", "@", "a@", "a.b@", "a@b.", "password=", "://", "://a:b@",
    "born 1 ", "1985年", "+1 ", "DE", "In article <", "References: ", "> ", "good ", "buy now! ", "好评！", "'", '"',
    "''", "\ufdfa", "x= ",
    "-- \n", "--\n", "> a\n", ">", "On 1 wrote:\n", "On <a@b> wrote:\n> a\n", "在1写道：\n",
    "-----Original Message-----\n", "-----BEGIN PGP SIGNATURE-----\n", "-----BEGIN PGP SIGNED MESSAGE-----\n",
    "__________\n", "__________\nunsubscribe\n", "*", "* ",
    "Received: a\n", "Content-Type: a/b\n", "--=_b\nContent-Type: a/b\n", "A: b\n", "A: b\n\n", "Sent from my a\n",
]
# fmt: on
CLAUSES = ["房间干净，", "我们被司机送到酒店，", "a.", "a_", "_", "abc ", "don't ", "[a"]
MASKED = sorted({sign for rule in rules_of(frozenset(KINDS)) for sign in rule.signs})
BEFORE = {"strip_html": ["", "<pre>", "<p><b>x</b></p>", "<!DOCTYPE html><body>", "</script></a></p></pre>"]}


def units(name: str) -> list[str]:
    if name == "mask_pii":
        return [*SIGNS, *(f"{sign} 1" for sign in MASKED)]
    return [*MARKUP, *SIGNS]


def repeated(unit: str, size: int) -> str:
    return unit * (size // len(unit.encode()))


Reader = Callable[[str], object]
"""Reads one text."""


def work(operator: Operator[Any] | Augmenter[Any] | Reader, text: str) -> Callable[[], object]:
    if isinstance(operator, SetOperator):
        records = [SetRecord("a", text, {"label": "x"}), SetRecord("b", f"{text} y", {"label": "y"})]
        return lambda: operator.judge(records)
    if isinstance(operator, Augmenter):
        # The text is split once for all augmenters; `test_the_time_of_splitting…` measures that.
        words = words_of(text)
        return lambda: operator.vary(words, Draw("1"))
    if isinstance(operator, RecordOperator):
        return lambda: operator.apply(Batch([(text, {"label": "x"})]))
    assert not isinstance(operator, Operator)
    return lambda: operator(text)


def split(text: str) -> list[Word]:
    return split_words(text, Terms(("b a", "中文")))


# Splitting takes a hundred times as long as what an augmenter does with the words.
words_of = lru_cache(maxsize=64)(split)


def processor_time(run: Callable[[], object]) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start


def grows_too_fast(
    operator: Operator[Any] | Augmenter[Any] | Reader, before: str, unit: str, measures: int = 3
) -> bool:
    small, middle = (work(operator, before + repeated(unit, size - len(before))) for size in SIZES[:2])
    longer = processor_time(middle)
    if longer <= NOISE or growth(small, middle, longer) <= DOUBTFUL_GROWTH:
        return False
    large = work(operator, before + repeated(unit, SIZES[2] - len(before)))
    # A processor that other work interrupts can take three times as long; one measure that is in proportion will do.
    return all(growth(middle, large, processor_time(large)) > MAX_GROWTH for _ in range(measures))


def growth(small: Callable[[], object], large: Callable[[], object], longer: float) -> float:
    """How many times as long the larger text takes, by the best of a few measures of each."""
    shorter = min(processor_time(small) for _ in range(2))
    if longer > DOUBTFUL_GROWTH * shorter:
        longer = min(longer, processor_time(large))
    return longer / max(shorter, NOISE / 64)


def texts(name: str) -> Iterator[tuple[str, str]]:
    for before in BEFORE.get(name, [""]):
        for unit in units(name):
            yield before, unit


@pytest.mark.parametrize("name", REGISTRY.names)
def test_the_time_of_an_operator_grows_with_the_text_and_no_faster(name: str) -> None:
    for params in PARAMS.get(name, [{}]):
        operator = REGISTRY.build(OperatorSpec(name, params), 0)
        processor_time(work(operator, "<p>warm <b>up</b></p> \u0301 中文 ÖÐ 13812345678"))
        slow = [(before, unit) for before, unit in texts(name) if grows_too_fast(operator, before, unit)]
        assert slow == []


# Those that ask a model do nothing else with a text.
OWN = [name for name in AUGMENTERS.names if not issubclass(AUGMENTERS.operator_type(name), Rewriter)]


@pytest.mark.parametrize("name", OWN)
def test_the_time_of_an_augmenter_grows_with_the_text_and_no_faster(name: str, tmp_path: Path) -> None:
    (tmp_path / "alike").mkdir()
    (tmp_path / "alike" / "synonyms.txt").write_text("h= 的 地 得\nn= ab abc\n", encoding="utf-8")
    params = {"tables": ["alike"]} if "tables" in AUGMENTERS.operator_type(name).params_type.model_fields else {}
    augmenter = AUGMENTERS.build(OperatorSpec(name, {"rate": 0.5, **params}), 0, "operators", FolderTables(tmp_path))
    processor_time(work(augmenter, "warm up, 中文"))
    # What words and what stands between them can be; all else differs in how it is split only.
    slow = [unit for unit in ("a b ", "中", "1", "\n", "“", *CLAUSES) if grows_too_fast(augmenter, "", unit)]
    assert slow == []


def test_the_time_of_splitting_a_text_into_words_grows_with_the_text_and_no_faster() -> None:
    processor_time(work(split, "warm up, 中文"))
    assert [unit for unit in (*SIGNS, *CLAUSES) if grows_too_fast(split, "", unit)] == []


def test_an_operator_whose_time_is_quadratic_is_noticed() -> None:
    class Quadratic(RecordOperator[Any]):
        def apply(self, batch: Batch) -> None:
            for text in batch.texts:
                for place in range(0, len(text), 32):
                    text.count("\n", place)

    assert grows_too_fast(Quadratic(None), "", "ab", measures=1)
