"""Maps of text: against what they imitate, on generated text, and by example."""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Any

import ftfy
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.engine.batch import Batch
from services.cleaning.engine.compiler import compile_recipe
from services.cleaning.engine.content_keys import content_key
from services.cleaning.engine.invisible import visible
from services.cleaning.engine.mojibake import repair_encoding
from services.cleaning.engine.registry import default_registry
from tests.examples import examples

REGISTRY = default_registry()


def cleaned(name: str, text: str, **params: Any) -> str:
    return compile_recipe(REGISTRY, [OperatorSpec(name, params)]).clean(text, {}).text


# What the fast path takes for harmless, and its neighbours that it must not.
TRICKY = (
    "aZ9 \t\n\r\x00\x0c\x1b[0m&<>;#~\x7f\x80\x85\xa0\xad"
    "£€¥éÃâ€™œ™“”‘’«»–—…、。！，＆＜；＃＇＂　ｱｶﾞがハ゛゙｟｠￠￩中國体㐀ﬁ½×²°Ω\u0301\u200b\u2028\ufeff\ufffd😀"
)


def expected(text: str, *, quotes: bool = True, width: str = "all") -> str:
    """What ftfy makes of it, with our rules for invisible characters, for entities and for the width of punctuation."""
    if "<" not in text:
        text = re.sub(r"&(#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});", _entity, text)
    config = ftfy.TextFixerConfig(unescape_html=False, uncurl_quotes=False, fix_character_width=False)
    repaired = unicodedata.normalize("NFC", visible(ftfy.fix_text(text, config)))
    if width == "all":
        repaired = unicodedata.normalize("NFC", ftfy.fixes.fix_character_width(repaired))
    return ftfy.fixes.uncurl_quotes(repaired) if quotes else repaired


def _entity(match: re.Match[str]) -> str:
    return match.group() if html.unescape(match.group()) in "<>&\"'" else html.unescape(match.group())


@examples(3000)
@given(st.text(st.one_of(st.sampled_from(TRICKY), st.characters(exclude_categories=["Cs"])), max_size=24))
def test_unicode_repair_gives_what_ftfy_gives(text: str) -> None:
    assume(repair_encoding(text) == text)  # we repair more than ftfy does: test_unicode_repair_by_example
    narrow = cleaned("fix_unicode", text, width="all", straighten_quotes=False)
    assert narrow == expected(text, quotes=False)
    assert cleaned("fix_unicode", text, width="keep", straighten_quotes=False) == expected(
        text, quotes=False, width="keep"
    )
    compatible = cleaned("fix_unicode", text, normalization="NFKC", straighten_quotes=False)
    assert compatible == unicodedata.normalize("NFKC", compatible)


@examples(1000)
@given(st.lists(st.text(st.sampled_from(TRICKY + "的是~√国硂琌&#1;"), max_size=12), max_size=6))
def test_a_look_at_code_points_clears_only_what_needs_no_repair(texts: list[str]) -> None:
    for params in ({}, {"straighten_quotes": False}, {"width": "all"}, {"width": "keep"}):
        operator: Any = REGISTRY.build(OperatorSpec("fix_unicode", params), 0)
        batch = Batch((text, {}) for text in texts)
        operator.apply(batch)
        assert batch.texts == [operator.map(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("schÃ¶n âœ” itâ€™s", "schön ✔ it's"),
        ("ＬＯＵＤ　ＮＯＩＳＥＳ！", "LOUD NOISES!"),
        ("价格：￥１００，（好）！", "价格：¥100，（好）！"),
        ("１２：３０，共１，０００元，涨１００％，ａ＠ｂ．ｃｏｍ", "12:30，共1,000元，涨100%，a@b.com"),
        ("他说“好”，it’s ok", "他说“好”，it's ok"),
        ("“curly” quotes", '"curly" quotes'),
        ("ｶﾞﾗｽは日本。", "ガラスは日本。"),
        ("a\x00b\x1b[31mred\x1b[0m", "abred"),
        ("一\r\n二\u2028三", "一\n二\n三"),
        ("&lt;p&gt; &amp; &#183; &hellip;", "&lt;p&gt; &amp; · …"),
        ("pay\u00adment", "payment"),
        ("wei√ü, M√ºnchen, √úber, √2, 2√x", "weiß, München, Über, √2, 2√x"),
        ("~{VPND2bJT~} and {~}", "中文测试 and {~}"),
        ("Ð»Ð»", "谢谢"),
        ("ÎÒÃÇµÄ", "我们的"),
        ("·þÎñÌ¬¶È²î", "服务态度差"),
        ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет"),
        ("gr√∂√üer, K√∂ln ist sch√∂n, gr√º√üe", "größer, Köln ist schön, grüße"),
        ("GROSSE √úBUNG, √† bientôt, o√π", "GROSSE ÜBUNG, à bientôt, où"),
        *((word.encode("big5").decode("gb18030"), word) for word in ("早餐一般", "謝謝大家", "我愛台灣")),
        ("這是一個測試，我們的產品很好".encode("big5").decode("gb18030"), "這是一個測試，我們的產品很好"),
        ("這家酒店的位置很好，房間很乾淨".encode("big5").decode("gb18030"), "這家酒店的位置很好，房間很乾淨"),
    ],
)
def test_unicode_repair_by_example(text: str, repaired: str) -> None:
    assert cleaned("fix_unicode", text) == repaired


@pytest.mark.parametrize(
    "text",
    [
        "👨\u200d👩\u200d👧 🏳️\u200d🌈 ❤️\u200d🔥 🧑🏽\u200d💻 👁️\u200d🗨️ 1\ufe0f\u20e3",
        "می\u200cخواهم و نمی\u200cدانم",
        "क्\u200dष और र्\u200dय, ශ්\u200dරී",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "葛\U000e0100城",
        "שלום\u200f (abc)",
        "钢琴烤漆容易磨花",
        "厚！厚！厚！厚！厚！厚！厚！",
        "逍夏宾馆 庐山宾馆",
        "饕餮魑魅魍魉，貔貅麒麟",
        "x√π + y√2 = √(ab)",
        "sed 's~{ab}~{cd}~'",
        "！！！",
        "Hello，World！",
    ],
)
def test_good_text_is_never_made_worse(text: str) -> None:
    assert cleaned("fix_unicode", text) == text
    assert cleaned("normalize_whitespace", text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u200db", "ab"),
        ("user\u202egpj.exe", "usergpj.exe"),
        ("hi\U000e0068\U000e0069!", "hi!"),
        ("中\u200b文\u2060字", "中文字"),
        ("a\ufe0f\ufe01b", "ab"),
        ("👍\ufe0f\ufe01\ufe02", "👍\ufe0f"),
        ("1\u200d2", "12"),
        ("\u200ehello\u200f", "hello"),
    ],
)
def test_what_no_one_sees_goes(text: str, shown: str) -> None:
    assert cleaned("fix_unicode", text) == shown
    assert content_key(text) == content_key(shown)


@examples(500)
@given(st.text(st.sampled_from("ab \t\n\r\x0b\u3000\xa0\u200b\ufeff"), max_size=20))
def test_white_space_is_tidy_and_tidying_again_changes_nothing(text: str) -> None:
    lines = cleaned("normalize_whitespace", text)
    assert cleaned("normalize_whitespace", lines) == lines
    assert lines == lines.strip()
    assert "  " not in lines
    assert "\n\n\n" not in lines
    assert all(line == line.strip() for line in lines.split("\n"))
    flat = cleaned("normalize_whitespace", text, keep_lines=False)
    assert flat.split() == lines.split()
    assert flat == " ".join(flat.split())


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<p>One &amp; two</p><p>three<br>four</p>", "One & two\nthree\nfour"),
        ("<html><head><title>T</title></head><body><script>x()</script>Text<style>p{}</style></body>", "Text"),
        ("<ul><li>a</li><li>b</li></ul>after", "a\nb\nafter"),
        ("<table><tr><td>1</td><td>2</td></tr></table>", "1 2"),
        ("a <b>bold</b> word\nand a line", "a bold word\nand a line"),
        ("<pre>keep\n  this</pre>", "keep\n  this"),
        ("if a < b and c > d", "if a < b and c > d"),
        ("5 &lt; 6 &nosuch; &#20013;", "5 < 6 &nosuch; 中"),
        ("no markup", "no markup"),
        ("<!-- hidden -->seen", "seen"),
        ("&lt;b&gt; stays <i>text</i>", "<b> stays text"),
        ("<p>a &amp;lt;b&amp;gt;</p>", "a &lt;b&gt;"),
        ("<p><![CDATA[if a <b>]]></p>", "if a <b>"),
        ("<a href=x.html>link</a> to <joe@example.com>, 1 <b and 2>", "link to <joe@example.com>, 1 <b and 2>"),
        ("<p>see http://x.org/?a=1&copy=2 and <your name></p>", "see http://x.org/?a=1&copy=2 and <your name>"),
        ("<!DOCTYPE html><html><body>x<font color='red'size=3>y</font\n><o:p></o:p></body></html>", "xy"),
        ("<html><body>an unclosed <title>stays<script>too</body></html>", "an unclosed staystoo"),
        ("long\n\ntext of\nlines\nwith one<br>break\nin it", "long\n\ntext of\nlines\nwith one\nbreak\nin it"),
        ('<img src="a.png" alt="a > b">after', "after"),
        ("<div data-reactroot>Hello</div>", "Hello"),
        ('<div v-cloak class="x"><span ng-if>Hello</span></div>', "Hello"),
        ("great hotel <br> nice staff <p> we will be back", "great hotel\nnice staff\nwe will be back"),
        ("<p> The first paragraph. </p> <p> And the second. </p>", "The first paragraph.\nAnd the second."),
        ("<div>a </div><p>about the </p><p>meta tag </p>", "a\nabout the\nmeta tag"),
        ("the <b>best</b> place, use <i>it</i>", "the best place, use it"),
        ("  <b>bold</b> and &amp;\n", "  bold and &\n"),
        ('<script>var x = "<!--";</script>seen <!-- y -->too', "seen too"),
        ("<table>before<tr><td>1</td></tr></table>", "before\n1"),
    ],
)
def test_html_becomes_text(markup: str, text: str) -> None:
    assert cleaned("strip_html", markup) == text


@pytest.mark.parametrize(
    "text",
    [
        "if a <b then swap a and b, or c> d",
        "From: John <john@example.com>",
        "use <your name here> or <name> and </name>",
        "价格<原价，原价>0",
        "usage: cp <source> <link> [<option>...]",
        "the '<br>' tag, \"</p>\" and `<b>` are spoken about",
        "List<a> and vector<s> x; <title> of the book; a <select> b",
        "<script> is never closed here, and this stays",
        "see <http://example.com/x> or <mailto:joe@example.com>",
        "<3 and <- and <-- and <!-- without end",
        "</b> has no start",
        "a<b",
        "<plaintext> <frame>",
        "while x<s and y</s>",
        "use <p> and </p> around",
        "<p> is a tag for a paragraph",
        "the <br> tag, a <div> element, 用 <p> 标签",
        "  a < b  ",
    ],
)
def test_plain_text_stays_to_the_letter(text: str) -> None:
    assert cleaned("strip_html", text) == text
    # Neither does what stands around it make HTML of it.
    assert cleaned("strip_html", f"{text} <i>x</i>") == f"{text} x"


PIECES = ["<", ">", "</", "/>", "<!", "<?", "a", " ", "=", '"', "'", "x@y.z", "中", "\n", "&", "name", "-", "0", "<<"]


@examples(1000)
@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
def test_text_without_a_known_tag_is_unchanged(text: str) -> None:
    # A start tag counts with its end tag, and a link also with an attribute.
    with_end = re.search(r"<a[\s>/]", text) and "</a" in text
    if not with_end and not re.search(r"<a[\s/][^<>]*=", text):
        assert cleaned("strip_html", f".{text}.") == f".{text}."


@pytest.mark.parametrize("words", ["a ", "written by ", "the tag ", "用 ", "`"])
def test_the_end_of_an_element_is_markup_after_any_word(words: str) -> None:
    assert cleaned("strip_html", f"<div>{words}</div>") == words.strip()


@examples(300)
@given(st.text(st.sampled_from("<>/ab p!-=\"'&;#3\n中"), max_size=30))
def test_no_text_between_tags_is_lost(text: str) -> None:
    """Whatever stands between two real tags, its letters come out."""
    assume(text.strip() != "/")  # `<div> / </div>` is how a sentence names both tags
    stripped = cleaned("strip_html", f"<div>{html.escape(text)}</div>")
    assert "".join(stripped.split()) == "".join(text.split())


def test_hostile_nesting_is_read_or_refused() -> None:
    assert cleaned("strip_html", "<div>" * 45_000 + "deep" + "</div>" * 45_000) == "deep"


def test_chinese_scripts_are_converted_by_phrase() -> None:
    assert cleaned("convert_script", "憂鬱的臺灣烏龜，頭髮與發展") == "忧郁的台湾乌龟，头发与发展"
    assert cleaned("convert_script", "头发与发展", conversion="s2t") == "頭髮與發展"
    assert cleaned("convert_script", "plain text") == "plain text"


def test_terms_are_unified_longest_first_and_once() -> None:
    terms = {"心肌梗塞": "心肌梗死", "急性心肌梗塞": "急性心肌梗死", "脑溢血": "脑出血", "脑出血": "X"}
    assert cleaned("term_map", "急性心肌梗塞与脑溢血", terms=terms) == "急性心肌梗死与脑出血"
    words = {"mi": "myocardial infarction"}
    assert cleaned("term_map", "MI in Miami", terms=words, ignore_case=True, whole_words=True) == (
        "myocardial infarction in Miami"
    )


def test_regular_expressions_replace_with_groups() -> None:
    assert cleaned("regex_replace", "Ticket #12 and #345", pattern=r"#(\d+)", replacement=r"no. \1") == (
        "Ticket no. 12 and no. 345"
    )


def test_the_first_line_moves_to_a_field() -> None:
    recipe = compile_recipe(REGISTRY, [OperatorSpec("first_line_to_field", {"field": "headline"})])
    moved = recipe.clean("\n Ad sales boost profit \n\nThe body.\nMore.", {"topic": "business"})
    assert moved.text == "The body.\nMore."
    assert moved.attributes == {"topic": "business", "headline": "Ad sales boost profit"}
    # Feedback comes with the field and without the line.
    kept = recipe.clean("The body.\nMore.", {"headline": "Corrected"})
    assert (kept.text, kept.attributes["headline"]) == ("The body.\nMore.", "Corrected")
    refused = recipe.clean("one line only", {})
    assert refused.rejection is not None
    assert refused.rejection.reason == "no_first_line"


def test_an_entity_that_is_unescaped_before_is_not_taken_for_html_after() -> None:
    recipe = compile_recipe(REGISTRY, [OperatorSpec("fix_unicode", {}), OperatorSpec("strip_html", {})])
    assert recipe.clean("write &lt;x&gt; here", {}).text == "write <x> here"
    assert recipe.clean("&lt;john@example.com&gt; and <b>bold</b>", {}).text == "<john@example.com> and bold"
