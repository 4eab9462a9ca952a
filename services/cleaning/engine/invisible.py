"""Invisible characters: removed unless a script or an emoji needs them.

Soft hyphens, zero-width spaces, joiners, direction marks, tag characters and variation selectors split words, hide
duplicates and carry hidden text. But Persian and Indic spelling and composed emoji need joiners, flags of regions are
written with tags, and right-to-left text needs its marks (UTS #51, UAX #9, UTR #36).
"""

from __future__ import annotations

import re
from typing import Final

from services.masking.invisible import DIRECTIONS, INVISIBLE

_ANY: Final = re.compile(f"[{INVISIBLE}]")
# A flag of a region: a black flag, its letters as tags, the end tag.
_FLAG: Final = "\U0001f3f4[\U000e0020-\U000e007e]{2,6}\U000e007f"
_PIECE: Final = re.compile(f"{_FLAG}|[{INVISIBLE}]+")
# Scripts whose letters change with the joiners between them: Arabic to Mandaic, the Indic ones, Sinhala, Tibetan,
# Myanmar, Khmer, Mongolian, further Indic and Arabic blocks.
_JOINING: Final = re.compile(
    "[\u0620-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\u1a20-\u1aaf\u1b00-\u1c4f\ua800-\ua82f\ua840-\ua8df"
    "\ua980-\ua9ff\uaa60-\uaa7f\uabc0-\uabff\ufb50-\ufdff\ufe70-\ufefc\U00010a00-\U00010aff\U00011000-\U00011fff]"
)
# Right-to-left scripts, in which direction marks are part of the text.
_RIGHT_TO_LEFT: Final = re.compile(
    "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]"
)
_PICTURE: Final = re.compile(
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u27bf\u2900-\u2bff\u3030\u303d\u3297\u3299"
    "\U0001f000-\U0001faff\u20e3#*0-9]"
)
_HAN: Final = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af]")


def visible(text: str) -> str:
    """The text without invisible characters that have no meaning at their place."""
    if text.isascii() or _ANY.search(text) is None:
        return text
    marks = _RIGHT_TO_LEFT.search(text) is not None
    return _PIECE.sub(lambda match: _kept(match, text, marks), text)


def _kept(match: re.Match[str], text: str, marks: bool) -> str:
    piece = match.group()
    if piece[0] == "\U0001f3f4":
        return piece
    before, after = (
        text[match.start() - 1 : match.start()] if match.start() else "",
        text[match.end() : match.end() + 1],
    )
    kept = ""
    for char in piece:
        if char == "\u200d":
            stays = _joins(kept[-1:] or before, before, after)
        elif char == "\u200c":
            stays = bool(before and _JOINING.match(before))
        elif "\ufe00" <= char <= "\ufe0f":
            # One selector per picture or ideograph; sequences of selectors carry hidden bytes.
            stays = not kept and bool(before and (_PICTURE.match(before) or _HAN.match(before)))
        elif "\U000e0100" <= char <= "\U000e01ef":
            stays = not kept and bool(before and _HAN.match(before))
        else:
            stays = marks and _DIRECTION.match(char) is not None
        if stays and not kept.endswith(char):
            kept += char
    return kept


_DIRECTION: Final = re.compile(f"[{DIRECTIONS}]")


def _joins(last: str, before: str, after: str) -> bool:
    """Whether a joiner joins: parts of an emoji, or letters of a script that needs it."""
    if before and _JOINING.match(before):
        return True
    pictures = bool(before and after and _PICTURE.match(before) and _PICTURE.match(after))
    # Digits and # count as pictures only with a selector.
    return pictures and last not in "#*0123456789" and after not in "#*0123456789"
