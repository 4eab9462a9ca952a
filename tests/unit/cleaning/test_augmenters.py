"""Augmenters change what they say they change, keep what must be kept, and draw the same each time."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cleaning.adapters.synonym_tables import FolderTables
from services.cleaning.domain.augmentation import AugmentSpec, parent_id, variant_id
from services.cleaning.domain.recipe import OperatorSpec, RecipeError
from services.cleaning.engine.augmentation import Augmentation, compile_augmentation
from services.cleaning.engine.augmenter import Augmenter
from services.cleaning.engine.registry import AUGMENTER_PLUGINS, default_augmenters, own_augmenters
from services.cleaning.engine.words import Terms, split_words
from tests.plugins import entry_point

CILIN = """\
Aa01A01= 房间 屋子 房室
Ed01A01= 舒服 舒适 如坐春风
Bo01A01= 早餐 早饭
Hi01A01= 喜欢 喜爱
Ka01A01= 但是 可是
Bp01A01= 盒子 箱子
Ed02A01= 干净 清洁 不脏
Bp01B01= 箱子 皮箱
Aa09A01# 酒店 医院
Aa09A02@ 孤单
"""
WORDNET = "n1= room chamber\na1= big large\nn2= breakfast meal\nn3= apple fruit\nv1= meal dine\n"
GROUPS = [["舒服", "舒适"], ["早餐", "早饭"], ["wonderful", "great"], ["breakfast", "meal"], ["staff", "team"]]
ALL: list[tuple[str, dict[str, Any]]] = [
    ("synonym_replacement", {"groups": GROUPS, "rate": 0.5}),
    ("random_insertion", {"groups": GROUPS, "rate": 0.5}),
    ("random_deletion", {"rate": 0.5}),
    ("random_swap", {"rate": 0.5}),
    ("keyboard_noise", {"rate": 0.5}),
    ("clause_reordering", {"rate": 1.0}),
    ("ba_bei", {"rate": 1.0}),
    ("homophone_noise", {"tables": ["homophones"], "rate": 0.5}),
]
HOMOPHONES = "h_jian= 间 见 建\nh_zao= 早 找\nh_le= 了 乐\nh_yue= 乐 月\nh_bu= 不 部\nh_xin= 心 新\nh_fang= 房 放\n"


@pytest.fixture
def tables(tmp_path: Path) -> FolderTables:
    return written(tmp_path)


def written(folder: Path) -> FolderTables:
    for name, content in (("cilin", CILIN), ("wordnet", WORDNET), ("homophones", HOMOPHONES)):
        (folder / name).mkdir()
        (folder / name / "synonyms.txt").write_text(content, encoding="utf-8")
    return FolderTables(folder)


@pytest.fixture(scope="module")
def shared_tables(tmp_path_factory: pytest.TempPathFactory) -> FolderTables:
    return written(tmp_path_factory.mktemp("tables"))


def made_by(
    name: str, params: dict[str, Any], tables: FolderTables | None = None, keep: tuple[str, ...] = (), count: int = 8
) -> Augmentation:
    spec = AugmentSpec((OperatorSpec(name, params),), seed=3, per_record=count)
    return compile_augmentation(own_augmenters(), spec, tables or FolderTables(Path("/nowhere")), keep)


def variants(augmentation: Augmentation, text: str) -> set[str]:
    return {draft.text for draft in augmentation.drafts(("news", "r1"), text) if draft.maker}


def test_every_augmenter_is_tried_here() -> None:
    registry = own_augmenters()
    # What models write is tried in test_rewriting.py.
    own = {name for name in registry.names if issubclass(registry.operator_type(name), Augmenter)}
    assert {name for name, _ in ALL} == own


def test_synonyms_have_the_part_of_speech_and_one_meaning(tables: FolderTables) -> None:
    augmentation = made_by("synonym_replacement", {"tables": ["cilin"], "rate": 1.0}, tables)
    # 但是 is a function word, 酒店 only related to 医院, 箱子 in two groups; 如坐春风 and 房室 are rare.
    assert variants(augmentation, "房间很舒服，但是酒店的早餐里有箱子") == {"屋子很舒适，但是酒店的早饭里有箱子"}
    assert variants(augmentation, "孤单") == set()
    # What negates is never a synonym.
    assert variants(augmentation, "很干净") == {"很清洁"}


def test_synonyms_of_english_words_keep_article_and_names(tables: FolderTables) -> None:
    augmentation = made_by("synonym_replacement", {"tables": ["wordnet"], "rate": 1.0}, tables)
    found = variants(augmentation, "a big room with breakfast for Room and BIG at the meal")
    assert found == {"a large chamber with breakfast for Room and BIG at the meal"}
    # `an` wants a vowel, and `meal` is a noun and a verb.
    assert variants(augmentation, "an apple at a meal") == set()


def test_declared_terms_are_kept(tables: FolderTables) -> None:
    params = {"tables": ["cilin"], "rate": 1.0}
    assert variants(made_by("synonym_replacement", params, tables, keep=("房间很舒服",)), "房间很舒服，有早餐") == {
        "房间很舒服，有早饭"
    }
    deleted = variants(
        made_by("random_deletion", {"rate": 0.5}, keep=("big data",), count=16), "the big data room is big"
    )
    assert deleted
    assert all("big data" in each for each in deleted)


def test_deletion_takes_a_space_along_and_leaves_half() -> None:
    text = "we had breakfast outside with nice people"
    for made in variants(made_by("random_deletion", {"rate": 0.9}, count=16), text):
        assert "  " not in made
        assert made == made.strip()
        assert len(made.split()) >= 4
    assert variants(made_by("random_deletion", {}), "breakfast") == set()


def test_swap_keeps_all_words_and_moves_none_into_another_language() -> None:
    text = "早餐 breakfast 很舒服 wonderful"
    found = variants(made_by("random_swap", {"rate": 0.5}, count=16), text)
    assert found
    for made in found:
        assert sorted(made) == sorted(text)
        assert re.sub(r"[a-z]+", "w", made).count("w") == 2


def test_insertion_adds_synonyms_of_words_of_the_text() -> None:
    augmentation = made_by("random_insertion", {"groups": [["breakfast", "meal"]]})
    for made in variants(augmentation, "the breakfast was nice"):
        assert Counter(made.split()) - Counter(["the", "breakfast", "was", "nice"]) == Counter(["meal"])


def test_typing_errors_are_of_one_letter_in_long_words() -> None:
    found = variants(made_by("keyboard_noise", {}, count=16), "the tiny breakfast at 8am in PARIS, 早餐")
    assert found
    for made in found:
        one, other = made.split(), ["the", "tiny", "breakfast", "at", "8am", "in", "PARIS,", "早餐"]
        changed = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
        assert [b for _, b in changed] in (["tiny"], ["breakfast"])
        assert all(abs(len(a) - len(b)) <= 1 and a[0] == b[0] for a, b in changed)


def test_homophones_take_the_place_of_characters_with_one_reading(tables: FolderTables) -> None:
    augmentation = made_by("homophone_noise", {"tables": ["homophones"]}, tables, count=16)
    assert variants(augmentation, "房间") == {"放间", "房见", "房建"}
    # 乐 has two readings, a word of one character is easily another one, and negations are kept.
    assert variants(augmentation, "音乐，早，不间断，服务部") == set()


def test_clauses_change_places_within_a_sentence_only() -> None:
    augmentation = made_by("clause_reordering", {"rate": 1.0})
    assert variants(augmentation, "房间干净，早餐丰富。价格便宜。") == {"早餐丰富，房间干净。价格便宜。"}
    assert variants(augmentation, "房间干净，但早餐一般。") == set()
    assert variants(augmentation, "房间干净。早餐丰富。") == set()
    assert variants(augmentation, "nice room, fine food.") == set()


@pytest.mark.parametrize(
    ("text", "other"),
    [("我们被司机送到酒店。", "司机把我们送到酒店。"), ("司机把我们送到酒店。", "我们被司机送到酒店。")],
)
def test_ba_and_bei_are_turned_round(text: str, other: str) -> None:
    assert variants(made_by("ba_bei", {}), text) == {other}


def test_ba_is_left_where_the_clause_is_longer() -> None:
    assert variants(made_by("ba_bei", {}), "昨天晚上司机没有把我们送到酒店。") == set()
    assert variants(made_by("ba_bei", {}), "一把雨伞") == set()


KEPT = st.sampled_from(
    [
        "[PHONE]",
        "[PATIENT_INFO]",
        "-5",
        "3.14",
        "100%",
        "2026-11-27",
        "C3PO",
        "a@b.com",
        "http://a.com/x?y=1",
        "心肌梗塞",
    ]
)
NEGATED = st.sampled_from(["不舒服", "没有早餐", "don't like", "not wonderful", "never", "nothing", "cannot", "无法"])
PLAIN = st.sampled_from(
    [
        "早餐",
        "很舒服",
        "房间",
        "，",
        "。",
        " ",
        "the breakfast ",
        "wonderful staff ",
        "司机把我们送到酒店",
        ", ",
        "服务部",
    ]
)


@pytest.mark.parametrize(("name", "params"), ALL)
@given(pieces=st.lists(st.one_of(KEPT, NEGATED, PLAIN), min_size=1, max_size=12))
def test_what_must_be_kept_survives_in_order(
    name: str, params: dict[str, Any], pieces: list[str], shared_tables: FolderTables
) -> None:
    text = " ".join(pieces)
    augmentation = made_by(name, params, shared_tables, keep=("心肌梗塞",), count=3)
    # What is negated may be written in another way, and nothing comes between.
    negated = (
        ("", "")
        if name in ("synonym_replacement", "keyboard_noise", "homophone_noise")
        else ("(?= like)", "(?= wonderful)")
    )
    kept = re.compile(
        r"\[[A-Z_]+\]|HTTP\S+|www\S+|a@b\.com|心肌梗塞|-5|3\.14|100%|2026-11-27|C3PO|不|没有|无法|never|nothing|cannot"
        rf"|don't{negated[0]}|not{negated[1]}"
    )
    wanted = kept.findall(text)
    for made in variants(augmentation, text):
        found = kept.findall(made)
        # Clauses move with all that is in them; everything else stays in its order.
        assert (sorted(found) == sorted(wanted)) if name == "clause_reordering" else (found == wanted)


@given(text=st.text(max_size=60))
def test_the_pieces_of_a_text_are_the_text(text: str) -> None:
    for terms in ((), ("a", "早餐", "ab c")):
        assert "".join(word.text for word in split_words(text, Terms(terms))) == text


@pytest.mark.parametrize(("name", "params"), ALL)
def test_equal_seed_and_parent_give_equal_variants(name: str, params: dict[str, Any], tables: FolderTables) -> None:
    text = "房间很舒服，早餐丰富，司机把我们送到酒店。 the wonderful breakfast and friendly staff"
    one, other = made_by(name, params, tables), made_by(name, params, tables)
    first = [(draft.number, draft.text) for draft in one.drafts(("news", "r1"), text)]
    assert [(draft.number, draft.text) for draft in other.drafts(("news", "r1"), text)] == first
    assert any(made for _, made in first)
    assert one.digest == other.digest


def test_seed_and_parent_decide() -> None:
    text = "we had a wonderful breakfast outside with nice people and friendly staff"
    spec = AugmentSpec((OperatorSpec("random_deletion", {"rate": 0.3}),), per_record=4)
    one = compile_augmentation(own_augmenters(), spec, FolderTables(Path("/nowhere")), ())
    other = compile_augmentation(
        own_augmenters(), AugmentSpec(spec.operators, 1, 4), FolderTables(Path("/nowhere")), ()
    )
    assert one.digest != other.digest
    made = {tuple(d.text for d in a.drafts(key, text)) for a in (one, other) for key in (("s", "1"), ("s", "2"))}
    assert len(made) == 4


def test_a_changed_table_changes_the_digest(tables: FolderTables, tmp_path: Path) -> None:
    params = {"tables": ["cilin"]}
    before = made_by("synonym_replacement", params, tables).digest
    (tmp_path / "cilin" / "synonyms.txt").write_text(CILIN + "Aa02A01= 宾馆 旅馆\n", encoding="utf-8")
    assert made_by("synonym_replacement", params, tables).digest != before


WRONG: list[tuple[AugmentSpec, str, str]] = [
    (AugmentSpec(()), "augment.operators", "names no augmenter"),
    (AugmentSpec((OperatorSpec("random_deletion"),), per_record=17), "augment.per_record", "from 1 to 16"),
    (AugmentSpec((OperatorSpec("random_deletion"),), rate=1.5), "augment.rate", "at most 1"),
    (AugmentSpec((OperatorSpec("random_delete"),)), "augment.operators[0].name", "did you mean 'random_deletion'"),
    (AugmentSpec((OperatorSpec("random_swap", {"rate": 0}),)), "augment.operators[0].params.rate", "greater than 0"),
    (
        AugmentSpec((OperatorSpec("random_swap", {"rat": 0.1}),)),
        "augment.operators[0].params.rat",
        "did you mean 'rate'",
    ),
    (AugmentSpec((OperatorSpec("synonym_replacement"),)), "augment.operators[0].params", "give `tables`"),
    (
        AugmentSpec((OperatorSpec("synonym_replacement", {"tables": ["cilin", "wordnett"]}),)),
        "augment.operators[0].params.tables[1]",
        "there are: cilin, homophones, wordnet",
    ),
    (
        AugmentSpec((OperatorSpec("synonym_replacement", {"tables": ["../cilin"]}),)),
        "augment.operators[0].params.tables[0]",
        "not a valid name",
    ),
]


@pytest.mark.parametrize(("spec", "field", "words"), WRONG)
def test_what_is_wrong_is_named(spec: AugmentSpec, field: str, words: str, tables: FolderTables) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)) as caught:
        compile_augmentation(own_augmenters(), spec, tables, ())
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"Aa01A01= \xff", "not UTF-8 (byte 9)"), (b"Aa01A01= a b\nnice good\n", "line 2: expected a code")],
)
def test_a_damaged_table_is_named_with_its_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "synonyms.txt").write_bytes(content)
    with pytest.raises(RecipeError, match=re.escape(words)):
        made_by("synonym_replacement", {"tables": ["mine"]}, FolderTables(tmp_path))


def test_a_variant_names_its_parent() -> None:
    assert parent_id(variant_id("r1~x", 12)) == "r1~x"
    assert parent_id("r1") is None
    assert parent_id("r1~0") is None


def test_other_packages_bring_augmenters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_point(tmp_path, monkeypatch, AUGMENTER_PLUGINS, "shout = json:JSONDecoder")
    assert "shout" in default_augmenters().names
    with pytest.raises(RecipeError, match=r"not a subclass of .*\.VariantMaker"):
        compile_augmentation(default_augmenters(), AugmentSpec((OperatorSpec("shout"),)), FolderTables(tmp_path), ())
