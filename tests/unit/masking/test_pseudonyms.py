"""Pseudonyms: one token for every way of writing the same thing, and nothing to learn from it without the key."""

from __future__ import annotations

import re

import pytest

from services.masking.personal_data import PersonalData
from services.masking.pii_patterns import Kind
from services.masking.pseudonyms import Pseudonyms

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
DATA = PersonalData(pseudonyms=Pseudonyms(KEY))
TOKEN = re.compile(r"\[[A-Z_]+-[0-9a-f]{10}\]")


def tokens(text: str, data: PersonalData = DATA) -> list[str]:
    """The pseudonyms in a masked text."""
    return TOKEN.findall(data.mask(text))


@pytest.mark.parametrize(
    "same",
    [
        ("write to anna@example.com", "Write to ANNA@Example.com!", "anna＠example.com"),
        ("call 13912345678", "电话：139 1234 5678", "+86 139-1234-5678", "call １３９１２３４５６７８"),
        ("call (312) 555-0187 today", "tel. +1 312 555 0187", "phone: 312.555.0187"),
        ("card 4111 1111 1111 1111", "card 4111-1111-1111-1111", "信用卡4111111111111111"),
        ("身份证 11010519491231002X", "身份证：11010519491231002x"),
        ("车牌 京A·12345", "京A12345 停在门口"),
    ],
)
def test_every_way_of_writing_the_same_thing_is_one_token(same: tuple[str, ...]) -> None:
    found = [tokens(text) for text in same]
    assert [len(each) for each in found] == [1] * len(same), [DATA.mask(text) for text in same]
    assert len({each[0] for each in found}) == 1


def test_what_differs_has_other_tokens() -> None:
    text = "anna@example.com wrote to hanna@example.com; call 13912345678 or 13912345679; password: Secret1x, SECRET1X"
    found = tokens(text)
    assert len(found) == len(set(found)) >= 4
    # The same characters as data of two kinds are two things.
    pseudonyms = Pseudonyms(KEY)
    assert pseudonyms.token("[X]", "phone", "123") != pseudonyms.token("[X]", "passport", "123")


def test_case_makes_two_secrets() -> None:
    assert tokens("password: Tr0ub4dor&3") != tokens("password: tr0ub4dor&3")


def test_another_key_gives_other_tokens() -> None:
    text = "write to anna@example.com"
    assert tokens(text) != tokens(text, PersonalData(pseudonyms=Pseudonyms(OTHER)))
    assert Pseudonyms(KEY).key_id != Pseudonyms(OTHER).key_id
    assert tokens(text) == tokens(text, PersonalData(pseudonyms=Pseudonyms(KEY)))


def test_masking_twice_is_masking_once() -> None:
    once = DATA.mask("Anna <anna@example.com>, 电话13912345678, server 10.1.2.3")
    assert DATA.mask(once) == once
    # Neither may a recipe without pseudonyms search them: ten hexadecimal digits can look like a number of a person.
    assert PersonalData().mask(once) == once


def test_a_token_of_ones_own_keeps_its_brackets() -> None:
    kinds: tuple[Kind, ...] = ("email",)
    data = PersonalData(kinds, {"email": "<mail>"}, Pseudonyms(KEY))
    assert re.fullmatch(r"to <mail-[0-9a-f]{10}>", data.mask("to anna@example.com"))
    assert data.mask(data.mask("to anna@example.com")) == data.mask("to anna@example.com")


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 bytes, not 31"):
        Pseudonyms(bytes(31))
