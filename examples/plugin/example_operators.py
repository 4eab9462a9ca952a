"""An operator of another package: it masks the numbers of support tickets."""

from __future__ import annotations

import re2
from pydantic import Field

from services.cleaning.engine.operator import TextMap, TextMapParams


class MaskTicketsParams(TextMapParams):
    """`prefix` that a ticket's number begins with, and the `replacement` to write for it."""

    prefix: str = Field("TICKET-", min_length=1, max_length=32)
    replacement: str = "[TICKET]"


class MaskTickets(TextMap[MaskTicketsParams]):
    """Replaces the numbers of support tickets by a word."""

    params_type = MaskTicketsParams

    def __init__(self, params: MaskTicketsParams) -> None:
        super().__init__(params)
        self._pattern = re2.compile(re2.escape(params.prefix) + r"[0-9]+")

    def map(self, text: str) -> str:
        """The text without numbers of tickets."""
        masked: str = self._pattern.sub(lambda _: self.params.replacement, text)
        return masked
