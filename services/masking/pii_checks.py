"""Check digits and forms of numbers that identify people."""

from __future__ import annotations

from datetime import date
from ipaddress import IPv6Address
from typing import Final

_CHINA_WEIGHTS: Final = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHINA_PROVINCES: Final = frozenset(
    [*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71, 81, 82, 83]
)
_TAIWAN_LETTERS: Final = "ABCDEFGHJKLMNPQRSTUVXYWZIO"
# Issuer ranges with the lengths of their numbers: first and last prefix, lengths (ISO/IEC 7812, the networks' lists).
_ISSUERS: Final[tuple[tuple[int, int, tuple[int, ...]], ...]] = (
    (4, 4, (13, 16, 19)),
    (51, 55, (16,)),
    (2221, 2720, (16,)),
    (34, 34, (15,)),
    (37, 37, (15,)),
    (6011, 6011, (16, 19)),
    (644, 659, (16, 19)),
    (3528, 3589, (16, 19)),
    (1800, 1800, (15,)),
    (2131, 2131, (15,)),
    (300, 305, (14,)),
    (36, 36, (14,)),
    (38, 39, (14, 16)),
    (62, 62, (16, 17, 18, 19)),
    (60, 60, (16, 17, 18, 19)),
    (81, 82, (16,)),
    (9558, 9559, (16, 19)),
    (2200, 2204, (16,)),
    (50, 50, (16, 17, 18, 19)),
    (56, 58, (16, 17, 18, 19)),
)


def digits_of(text: str) -> str:
    """The digits of a number, without the separators between them."""
    return "".join(char for char in text if char.isdigit())


def is_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812)."""
    numbers = [int(digit) for digit in digits]
    doubled = [number * 2 - 9 * (number > 4) for number in numbers[-2::-2]]
    return (sum(numbers[-1::-2]) + sum(doubled)) % 10 == 0


def is_card_number(digits: str) -> bool:
    """Whether it can be a payment card's number: by issuer, length, check digit, and not one digit repeated."""
    if not any(
        len(digits) in lengths and first <= int(digits[: len(str(first))]) <= last for first, last, lengths in _ISSUERS
    ):
        return False
    return len(set(digits)) > 1 and is_luhn(digits)


def is_iban(number: str) -> bool:
    """Whether an international bank account number has a possible length and its check digits (ISO 13616)."""
    bare = number.replace(" ", "")
    if not 15 <= len(bare) <= 34:
        return False
    return int("".join(str(int(char, 36)) for char in bare[4:] + bare[:4])) % 97 == 1


def is_china_id(number: str) -> bool:
    """Whether it is the number of a Chinese resident identity card: province, birthday, check digit (GB 11643)."""
    number = number.replace(" ", "").replace("-", "").upper()
    if int(number[:2]) not in _CHINA_PROVINCES or not is_date(number[6:10], number[10:12], number[12:14]):
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_CHINA_WEIGHTS, number, strict=False))
    return "10X98765432"[total % 11] == number[-1]


def is_old_china_id(number: str) -> bool:
    """Whether it is a 15-digit number of an identity card issued until 1999, which has no check digit."""
    return int(number[:2]) in _CHINA_PROVINCES and is_date(f"19{number[6:8]}", number[8:10], number[10:12])


def is_taiwan_id(number: str) -> bool:
    """Whether a national identification number of Taiwan has its check digit."""
    code = 10 + _TAIWAN_LETTERS.index(number[0])
    digits = [code // 10, code % 10, *map(int, number[1:])]
    weights = (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1)
    return sum(weight * digit for weight, digit in zip(weights, digits, strict=True)) % 10 == 0


def is_hong_kong_id(number: str) -> bool:
    """Whether a Hong Kong identity card number, as A123456(3), has its check digit."""
    bare = number.replace("(", "").replace(")", "").upper()
    letters = bare[:-7].rjust(2)
    values = [36 if letter == " " else ord(letter) - 55 for letter in letters]
    values += [int(digit) for digit in bare[-7:-1]]
    values.append(10 if bare[-1] == "A" else int(bare[-1]))
    return sum(value * weight for value, weight in zip(values, range(9, 0, -1), strict=True)) % 11 == 0


def is_social_security(number: str) -> bool:
    """Whether it can be a social security number of the United States, as 123-45-6789 or as nine digits."""
    digits = digits_of(number)
    return digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"


def is_date(year: str, month: str, day: str) -> bool:
    """Whether it is a valid date, and possible as a living person's birthday."""
    try:
        return 1890 <= date(int(year), int(month), int(day)).year <= 2100
    except ValueError:
        return False


def is_ipv6(address: str) -> bool:
    """Whether it is an address of someone: not a time of day or a MAC address, and not `::1` or `a::b`."""
    if sum(bool(group) for group in address.split(":")) < 3:
        return False
    try:
        return bool(IPv6Address(address))
    except ValueError:
        return False
