"""Maps of text by rule: white space, regular expressions, terms."""

from __future__ import annotations

import re
from collections.abc import Callable

from pydantic import Field

from services.cleaning.engine.operator import Params, ParamsError, TextMap

_INVISIBLE = ("\u200b", "\u2060", "\ufeff")


class NormalizeWhitespaceParams(Params):
    """`keep_lines`: line ends stay, at most one empty line in a row; else the text becomes one line."""

    keep_lines: bool = True


class NormalizeWhitespace(TextMap[NormalizeWhitespaceParams]):
    """Makes runs of any white space one space, trims, removes invisible characters (U+200B, U+2060, U+FEFF)."""

    params_type = NormalizeWhitespaceParams

    def map(self, text: str) -> str:
        """The tidy text."""
        if not text.isascii():
            for char in _INVISIBLE:
                text = text.replace(char, "")
        # Splitting and joining costs less than finding out whether there is anything to do.
        if not self.params.keep_lines:
            return " ".join(text.split())
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        text = "\n".join([" ".join(line.split()) for line in text.split("\n")]).strip("\n")
        while "\n\n\n" in text:
            text = text.replace("\n\n\n", "\n\n")
        return text


class RegexReplaceParams(Params):
    r"""`pattern`, a Python regular expression, and its `replacement` (`\1` and so on refer to groups)."""

    pattern: str = Field(min_length=1, max_length=4096)
    replacement: str = ""
    ignore_case: bool = False
    multiline: bool = False


class RegexReplace(TextMap[RegexReplaceParams]):
    """Replaces what a regular expression finds."""

    params_type = RegexReplaceParams

    def __init__(self, params: RegexReplaceParams) -> None:
        super().__init__(params)
        flags = (re.IGNORECASE if params.ignore_case else 0) | (re.MULTILINE if params.multiline else 0)
        try:
            self._pattern = re.compile(params.pattern, flags)
        except re.error as error:
            raise ParamsError("pattern", f"is no regular expression: {error}") from error
        groups = {*map(str, range(self._pattern.groups + 1)), *self._pattern.groupindex}
        for number, name in re.findall(r"\\(?:([0-9]{1,2})|g<([^>]*)>)", params.replacement):
            if (number or name) not in groups:
                raise ParamsError("replacement", f"refers to group {number or name!r}, which the pattern does not have")

    def map(self, text: str) -> str:
        """The text with replacements."""
        return self._pattern.sub(self.params.replacement, text)


class TermMapParams(Params):
    """`terms`: what to write for each term; with `whole_words` a term inside a longer word of letters stays."""

    terms: dict[str, str] = Field(min_length=1, max_length=100_000)
    ignore_case: bool = False
    whole_words: bool = False


class TermMap(TextMap[TermMapParams]):
    """Unifies terms in one pass: the longest term wins, and what was written is not looked at again."""

    params_type = TermMapParams

    def __init__(self, params: TermMapParams) -> None:
        super().__init__(params)
        if "" in params.terms:
            raise ParamsError("terms", "holds an empty term")
        fold: Callable[[str], str] = str.lower if params.ignore_case else str
        self._written = {fold(term): written for term, written in params.terms.items()}
        self._fold = fold
        choice = "|".join(re.escape(term) for term in sorted(params.terms, key=lambda term: (-len(term), term)))
        bounded = rf"(?<!\w)(?:{choice})(?!\w)" if params.whole_words else choice
        self._pattern = re.compile(bounded, re.IGNORECASE if params.ignore_case else 0)

    def map(self, text: str) -> str:
        """The text with unified terms."""
        return self._pattern.sub(self._written_for, text)

    def _written_for(self, match: re.Match[str]) -> str:
        term = match.group()
        return self._written.get(self._fold(term), term)
