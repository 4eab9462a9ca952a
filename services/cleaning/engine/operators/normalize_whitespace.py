"""Makes white space and line ends uniform."""

from __future__ import annotations

from services.cleaning.engine.invisible import visible
from services.cleaning.engine.operator import TextMap, TextMapParams


class NormalizeWhitespaceParams(TextMapParams):
    """`keep_lines`: keeps line ends, with at most one empty line in a row; otherwise the text becomes one line."""

    keep_lines: bool = True


class NormalizeWhitespace(TextMap[NormalizeWhitespaceParams]):
    """Collapses white space to one space, trims, removes invisible characters."""

    version = 2
    params_type = NormalizeWhitespaceParams

    def map(self, text: str) -> str:
        """The text with uniform white space."""
        if not text.isascii():
            text = visible(text)
        # Splitting and joining costs less than checking whether there is anything to do.
        if not self.params.keep_lines:
            return " ".join(text.split())
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        text = "\n".join([" ".join(line.split()) for line in text.split("\n")]).strip("\n")
        while "\n\n\n" in text:
            text = text.replace("\n\n\n", "\n\n")
        return text
