"""The operator that masks personal data; `services.masking` finds it, for captured answers as well."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from services.cleaning.engine.batch import Column
from services.cleaning.engine.operator import ALL_FIELDS, ParamsError, TextMap, TextMapParams
from services.masking.personal_data import MASKED_KINDS, PersonalData, wrong_tokens
from services.masking.pii_gate import MEMORY_BYTES
from services.masking.pii_patterns import Kind
from services.masking.pseudonyms import Pseudonyms


class MaskPiiParams(TextMapParams):
    """`kinds`: what to mask; `tokens`: replacements other than the default `[EMAIL]`, `[PHONE]` and so on.

    `pseudonyms`: a token is different for everything that it stands for: the same address is `[EMAIL-3f2a9c10de]` in
    every record, by a key that only the mesh has.
    """

    # All fields by default: what is masked in the text must not stay in an attribute that a model learns to write.
    fields: list[str] = Field(default=[ALL_FIELDS], min_length=1, max_length=64)
    kinds: list[Kind] = Field(default=list(MASKED_KINDS), min_length=1)
    tokens: dict[str, str] = Field(default_factory=dict)
    pseudonyms: bool = False


class MaskPii(TextMap[MaskPiiParams]):
    """Replaces personal data by a token for its kind, in the text and in every attribute."""

    version = 6
    params_type = MaskPiiParams

    def __init__(self, params: MaskPiiParams) -> None:
        super().__init__(params)
        if wrong := wrong_tokens(params.tokens, params.pseudonyms):
            raise ParamsError("tokens", wrong)
        self.data = PersonalData(params.kinds, params.tokens)

    def use_key(self, key: bytes) -> str:
        """See `Operator.use_key`."""
        if not self.params.pseudonyms:
            return ""
        if not key:
            raise ParamsError("pseudonyms", "this service has no key for them: set TIDEMILL_PSEUDONYM_KEY_FILE")
        pseudonyms = Pseudonyms(key)
        self.data = PersonalData(self.params.kinds, self.params.tokens, pseudonyms)
        return pseudonyms.key_id

    @property
    def memory_bytes(self) -> int:
        """Memory of the expression that most texts are skipped by."""
        return MEMORY_BYTES

    def map_column(self, column: Column) -> Sequence[str]:
        """Masks the texts that may contain personal data."""
        return self.map_at(column, self.data.candidates(column.texts))

    def map(self, text: str) -> str:
        """The text with tokens."""
        return self.data.mask(text)
