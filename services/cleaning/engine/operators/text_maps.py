"""Maps of text by rule: white space and regular expressions."""

from __future__ import annotations

from pydantic import Field

from services.cleaning.engine.invisible import visible
from services.cleaning.engine.operator import ParamsError, TextMap, TextMapParams
from services.cleaning.engine.patterns import MEMORY_BYTES, LinearPattern, PatternError, ReplacementError


class NormalizeWhitespaceParams(TextMapParams):
    """`keep_lines`: keeps line ends, with at most one empty line in a row; otherwise the text becomes one line."""

    keep_lines: bool = True


class NormalizeWhitespace(TextMap[NormalizeWhitespaceParams]):
    """Collapses white space to one space, trims, removes invisible characters."""

    version = 2
    params_type = NormalizeWhitespaceParams

    def map(self, text: str) -> str:
        """The tidy text."""
        if not text.isascii():
            text = visible(text)
        # Splitting and joining costs less than finding out whether there is anything to do.
        if not self.params.keep_lines:
            return " ".join(text.split())
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        text = "\n".join([" ".join(line.split()) for line in text.split("\n")]).strip("\n")
        while "\n\n\n" in text:
            text = text.replace("\n\n\n", "\n\n")
        return text


class RegexReplaceParams(TextMapParams):
    r"""`pattern`, a regular expression of RE2, and its `replacement`, in which `\1` and `\g<name>` are groups."""

    pattern: str = Field(min_length=1, max_length=4096)
    replacement: str = Field("", max_length=4096)
    ignore_case: bool = False
    multiline: bool = False


class RegexReplace(TextMap[RegexReplaceParams]):
    r"""Replaces the matches of a regular expression, in time linear in the text.

    RE2 has no look-around and no back-references, and its `\d`, `\w`, `\s` and `\b` are ASCII's; see
    `services.cleaning.engine.patterns` for all differences from Python's `re`.
    """

    version = 2
    params_type = RegexReplaceParams

    def __init__(self, params: RegexReplaceParams) -> None:
        super().__init__(params)
        try:
            self._pattern = LinearPattern(
                params.pattern, params.replacement, ignore_case=params.ignore_case, multiline=params.multiline
            )
        except PatternError as error:
            raise ParamsError("pattern", str(error)) from error
        except ReplacementError as error:
            raise ParamsError("replacement", str(error)) from error

    @property
    def memory_bytes(self) -> int:
        """The compiled pattern's."""
        return MEMORY_BYTES

    def map(self, text: str) -> str:
        """The text with replacements."""
        return self._pattern.replace(text)
