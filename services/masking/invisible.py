"""Invisible characters, as the insides of character classes of regular expressions."""

from __future__ import annotations

from typing import Final

# Always invisible, needed by no script: soft hyphen, combining grapheme joiner, Hangul fillers, Mongolian vowel
# separator, zero-width space and no-break space, word joiner, invisible operators, overrides, deprecated formats,
# annotations.
NEVER: Final = (
    "\u00ad\u034f\u3164\uffa0\u180e\u200b\ufeff\u2060-\u2064\u202d\u202e\u206a-\u206f\ufff9-\ufffb\U0001d173-\U0001d17a"
)
JOINERS: Final = "\u200c\u200d"
DIRECTIONS: Final = "\u061c\u200e\u200f\u202a-\u202c\u2066-\u2069"
TAGS: Final = "\U000e0001\U000e0020-\U000e007f"
SELECTORS: Final = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
INVISIBLE: Final = f"{NEVER}{JOINERS}{DIRECTIONS}{TAGS}{SELECTORS}"
"""All invisible characters, as the inside of a character class."""
