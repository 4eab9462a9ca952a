"""How originals are kept: the text and the attributes of records as they arrived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from services.cleaning.domain.record import Keeping, RawRecord, Rejection

DATA_CLASS: Final = "data_class"
"""The attribute with a record's class: who may see it."""

NOT_KEPT: Final = Rejection("original_not_kept", "The original is not kept, and this recipe is newer.")
"""Why a recipe has nothing of a record whose original is not kept and that arrived before this recipe."""

_UNCLASSIFIED = "unclassified"
_CAREFUL: Final[Mapping[str, Keeping]] = {
    "public": Keeping.PLAIN,
    "internal": Keeping.PLAIN,
    "private": Keeping.ENCRYPTED,
    _UNCLASSIFIED: Keeping.PLAIN,
}


@dataclass(frozen=True, slots=True)
class OriginalsPolicy:
    """How originals are kept by data class."""

    by_class: Mapping[str, Keeping] = field(default_factory=lambda: dict(_CAREFUL))

    @classmethod
    def parse(cls, text: str) -> OriginalsPolicy:
        """The policy in words such as `internal=encrypted, private=none`; what it does not name is as by default.

        Raises:
            ValueError: it names what does not exist.
        """
        by_class = dict(_CAREFUL)
        for pair in filter(None, (part.strip() for part in text.split(","))):
            name, _, how = (part.strip() for part in pair.partition("="))
            if name not in _CAREFUL or how not in (each.value for each in Keeping):
                raise ValueError(
                    f"{pair!r} is not valid: write CLASS=HOW with a class of {', '.join(_CAREFUL)} and one of "
                    f"{', '.join(each.value for each in Keeping)}, such as private=none"
                )
            by_class[name] = Keeping(how)
        return cls(by_class)

    def of(self, record: RawRecord, said: Keeping | None) -> Keeping:
        """How the original of a record is kept.

        Args:
            record: as it arrived. A class that does not exist counts as `private`.
            said: what the policy of its source says; None where it says nothing.
        """
        if said is not None:
            return said
        name = record.attributes.get(DATA_CLASS, "") or _UNCLASSIFIED
        return self.by_class.get(name, self.by_class["private"])
