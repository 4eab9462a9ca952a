"""Masking: what must go, what must stay, and how much generated data is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.engine.batch import Column
from services.cleaning.engine.compiler import compile_recipe
from services.cleaning.engine.operators.mask_pii import MaskPii, MaskPiiParams
from services.cleaning.engine.registry import default_registry
from tests.recipes import parse_operators

ALL = ["url", "email", "id_card", "bank_card", "ip", "phone"]
RECIPE = compile_recipe(default_registry(), [OperatorSpec("mask_pii", {"kinds": ALL})])


def masked(text: str) -> str:
    return RECIPE.clean(text, {}).text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jane.doe+x@mail.example.co.uk now", "write to [EMAIL] now"),
        ("邮箱zhang_san@163.com，谢谢", "邮箱[EMAIL]，谢谢"),
        ("see https://example.com/a?b=1#c and www.example.org/x", "see [URL] and [URL]"),
        ("见http://example.com/x吧", "见[URL]吧"),
        ("(see http://example.com/x?a=1), or www.example.com: ok", "(see [URL]), or [URL]: ok"),
        ("手机13812345678或+86 138-1234-5678", "手机[PHONE]或[PHONE]"),
        ("电话010-12345678转", "电话[PHONE]转"),
        ("call (212) 555-0134 or +1 212 555 0134", "call [PHONE] or [PHONE]"),
        ("ring 020 7946 0958 or +44 20 7946 0958.", "ring [PHONE] or [PHONE]."),
        ("身份证11010519491231002X。", "身份证[ID]。"),
        ("card 4111 1111 1111 1111 ok", "card [CARD] ok"),
        ("host 192.168.10.254:80", "host [IP]:80"),
        ("call 212-555-0134x4567 or (212) 555-0134 ext. 12 now", "call [PHONE] or [PHONE] now"),
        ("fax 001-212-555-0134", "fax [PHONE]"),
        ("总机(010)8888-6666，或0755-88886666", "总机[PHONE]，或[PHONE]"),
        ("tel:+8613812345678", "tel:[PHONE]"),
        ("打138\u200b12345678吧", "打[PHONE]吧"),
        ("zhang\u00adsan@exam\u2060ple.com\u200b!", "[EMAIL]\u200b!"),
        ("身份证 110105 19491231 002X", "身份证 [ID]"),
        ("SSN 123-45-6789.", "SSN [ID]."),
        ("Amex 3782 822463 10005", "Amex [CARD]"),
        ("银联6222 0212 3456 7890 128卡", "银联[CARD]卡"),
        ("from 2001:0db8:85a3::8a2e:0370:7334 and fe80::1ff:fe23:4567:890a", "from [IP] and [IP]"),
    ],
)
def test_personal_data_is_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "The budget for 2004-05 rose from 1,234,567 to 2,345,678.",
        "On 2005-01-14 at 12:30:45 it scored 6-4 6-7 7-6.",
        "身份证110105194912310021 has a wrong check digit",
        "order 4111 1111 1111 1112 is no card",
        "version 1.2.3 and 999.1.1.1",
        "π is 3.14159265358979",
        "user @ home, a@b",
        "in 1998 1999 2000 2001",
        "from 10:30:45 to 11:45:00, MAC 00:1b:44:11:3a:b7, std::string a::b",
        "000-12-3456 and 123-45-67890 and 2004-05-0678 are no social security numbers",
        "Matthew 5:3-10, odds 11:4:2:1:1:1:1:1:1",
    ],
)
def test_other_numbers_stay(text: str) -> None:
    assert masked(text) == text


def test_tokens_can_be_chosen() -> None:
    spec = OperatorSpec("mask_pii", {"kinds": ["email"], "tokens": {"email": "[PATIENT_INFO]"}})
    recipe = compile_recipe(default_registry(), [spec])
    assert recipe.clean("a.b@example.org 13812345678", {}).text == "[PATIENT_INFO] 13812345678"


def test_a_medical_report_comes_out_masked_and_in_standard_terms() -> None:
    """The example that the project began with."""
    terms = {"心肌梗塞": "心肌梗死", "脑溢血": "脑出血"}
    recipe = compile_recipe(default_registry(), [OperatorSpec("mask_pii"), OperatorSpec("term_map", {"terms": terms})])
    report = "患者张三，男，65岁，联系电话13812345678，因急性心肌梗塞入院，既往有脑溢血病史。"
    assert recipe.clean(report, {"summary": "患者：李四，脑溢血"}).text == (
        "[PATIENT_INFO]，联系电话[PHONE]，因急性心肌梗死入院，既往有脑出血病史。"
    )
    assert recipe.clean(report, {"summary": "患者：李四，脑溢血"}).attributes == {"summary": "[PATIENT_INFO]，脑溢血"}


def test_the_example_recipe_masks_reports_and_writes_standard_terms() -> None:
    folder = Path(__file__).parents[3] / "examples" / "medical"
    operators = yaml.safe_load((folder / "reports.yaml").read_text(encoding="utf-8"))["dataset"]["operators"]
    recipe = compile_recipe(default_registry(), parse_operators(operators))
    lines = [json.loads(line) for line in (folder / "reports.jsonl").read_text(encoding="utf-8").splitlines()]
    cleaned = [recipe.clean(line["text"], {}) for line in lines]
    assert [each.text for each in cleaned[:4]] == [
        "[PATIENT_INFO]，联系电话[PHONE]，因急性心肌梗死入院，既往有脑出血病史。",
        "[PATIENT_INFO]，身份证号[ID]，突发脑出血，头痛3小时。",
        "[PATIENT_INFO]因胸闷就诊，心电图提示陈旧性心肌梗死，血压150/95mmHg。",
        "[PATIENT_INFO]，脑卒中后左侧肢体无力2周，邮箱[EMAIL]。",
    ]


def test_a_batch_is_masked_as_its_texts_are_one_by_one() -> None:
    operator = MaskPii(MaskPiiParams())
    texts = [
        "1",
        "234567",
        "",
        "13812345678",
        "８８",
        "a@b.example",
        "10.0.0.7",
        "京A12345",
        "密码：abc123",
        "x" * 30,
        "138",
    ]
    for size in (1, 2, 5, len(texts)):
        for start in range(len(texts)):
            part = texts[start : start + size]
            assert list(operator.map_column(Column(part))) == [operator.map(text) for text in part]


# Quadratic in the length, the first would take minutes and the second hours.
@pytest.mark.parametrize("length", [50_000, pytest.param(400_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "piece", ["@", "a@b.example ", "13812345678 ", "1", "password=", "患者", "://a:b@", "1.", "(", "+1 ", "born 1 "]
)
def test_hostile_texts_take_no_longer_than_others(piece: str, length: int) -> None:
    masked(piece * (length // len(piece)))
