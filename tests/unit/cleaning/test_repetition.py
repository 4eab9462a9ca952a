"""What counts repeats fast says the same as what counts them plainly: these are the plain ones."""

from __future__ import annotations

import re
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.cleaning.engine.characters import CJK
from services.cleaning.engine.operators import repetition_filter
from services.cleaning.engine.operators.repetition_filter import repeated_words
from services.masking.code_points import code_points
from tests.examples import examples

_WORD = re.compile(rf"{CJK.pattern}|[^\s{CJK.pattern[1:-1]}]+")
_TOP = {2: 0.2, 3: 0.18, 4: 0.16}
_REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def plainly_repeated_words(text: str, min_words: int) -> str:
    """Gopher's limits (Rae et al. 2021, table A1), each counted in full."""
    words = [word for word in _WORD.findall(text.casefold()) if any(map(str.isalnum, word))]
    scale = 2 if 2 * len(CJK.findall(text)) > len(words) else 1
    if len(words) < scale * min_words:
        return ""
    for name, separator in (("line", "\n"), ("paragraph", "\n\n")):
        parts = [part for part in map(str.strip, text.split(separator)) if part]
        again = [part for part, count in Counter(parts).items() for _ in range(count - 1)]
        if len(again) > 0.3 * len(parts):
            return f"duplicate_{name}s={len(again) / len(parts):.3f} > 0.3"
        share = sum(map(len, again)) / max(sum(map(len, parts)), 1)
        if share > 0.2:
            return f"duplicate_{name}_chars={share:.3f} > 0.2"
    chars = sum(map(len, words))
    for words_in, limit in _TOP.items():
        size = scale * words_in
        counts = Counter(zip(*(words[start:] for start in range(size)), strict=False))
        gram, count = counts.most_common(1)[0] if counts else ((), 0)
        share = count * sum(map(len, gram)) / chars
        if count > 1 and share > limit:
            return f"top_{words_in}gram={share:.3f} > {limit:g}"
    for words_in, limit in _REPEATED.items():
        share = plainly_repeated_chars(words, scale * words_in) / chars
        if share > limit:
            return f"duplicate_{words_in}grams={share:.3f} > {limit:g}"
        if share <= 0.10:
            break
    return ""


def plainly_repeated_chars(words: list[str], size: int) -> int:
    """Characters of words in n-grams that occurred earlier; each word counts once."""
    seen: set[tuple[str, ...]] = set()
    repeated: set[int] = set()
    for start in range(len(words) - size + 1):
        gram = tuple(words[start : start + size])
        if gram in seen:
            repeated |= set(range(start, start + size))
        seen.add(gram)
    return sum(len(words[place]) for place in repeated)


# Few different words, so that they repeat in every manner; signs, several alphabets, what folds to other lengths.
_words = st.sampled_from(
    [
        "a",
        "to",
        "buy",
        "now",
        "house",
        "ſtraße",
        "İ",
        "-",
        "...",
        "_",
        "l'eau",
        "x\x1cy",
        "好",
        "评价",
        "很好。",
        "ok吗",
    ]
)
_phrases = st.lists(_words, min_size=1, max_size=14).map(" ".join)
_texts = st.lists(
    st.tuples(_phrases, st.integers(1, 6), st.sampled_from([" ", "\n", "\n\n", "　", "\u2028", ""])), max_size=6
).map(lambda parts: "".join((phrase + separator) * count for phrase, count, separator in parts))


@examples(3000)
@given(_texts, st.integers(1, 30))
def test_the_limits_on_words_are_those_counted_in_full(text: str, min_words: int) -> None:
    assert repeated_words(text, min_words) == plainly_repeated_words(text, min_words)


@examples(500)
@given(
    st.lists(st.one_of(_texts, st.text("ab好😀", max_size=80)), max_size=12), st.integers(1, 12), st.integers(1, 400)
)
def test_repeats_of_characters_are_exact_in_every_text_of_a_batch(texts: list[str], size: int, together: int) -> None:
    usual = repetition_filter._TOGETHER
    repetition_filter._TOGETHER = together
    try:
        totals, repeats, commonest = repetition_filter._repeats(code_points(texts), size)
    finally:
        repetition_filter._TOGETHER = usual
    for at, text in enumerate(texts):
        counts = Counter(text[start : start + size] for start in range(len(text) - size + 1))
        assert totals[at] == counts.total()
        assert repeats[at] == counts.total() - len(counts)
        assert commonest[at] == max(counts.values(), default=0)
