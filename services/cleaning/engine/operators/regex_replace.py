"""Replaces what a regular expression matches."""

from __future__ import annotations

from pydantic import Field

from services.cleaning.engine.operator import ParamsError, TextMap, TextMapParams
from services.cleaning.engine.patterns import MEMORY_BYTES, LinearPattern, PatternError, ReplacementError


class RegexReplaceParams(TextMapParams):
    r"""`pattern`, a regular expression of RE2, and its `replacement`, in which `\1` and `\g<name>` are groups."""

    pattern: str = Field(min_length=1, max_length=4096)
    replacement: str = Field("", max_length=4096)
    ignore_case: bool = False
    multiline: bool = False


class RegexReplace(TextMap[RegexReplaceParams]):
    r"""Replaces the matches of a regular expression, in time linear in the text.

    RE2 has no look-around and no back-references, and its `\d`, `\w`, `\s` and `\b` cover ASCII only; see
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
