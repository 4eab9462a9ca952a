"""Characters of Chinese words that sound alike, as input methods mistake them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from pydantic import Field

from services.cleaning.engine.augmenter import Augmenter, AugmenterParams, Draw, Tables, share_of, tables_of
from services.cleaning.engine.words import Word, negates


class HomophoneParams(AugmenterParams):
    """`tables`: names of tables of characters that sound alike, such as `homophones`.

    `rate`: share of the words of two and more characters that are changed.
    """

    tables: list[str] = Field(min_length=1, max_length=8)


class HomophoneNoise(Augmenter[HomophoneParams]):
    """Writes one character of some Chinese words as another one that sounds alike.

    Characters with several readings stay.
    """

    params_type = HomophoneParams

    def __init__(self, params: HomophoneParams, tables: Tables) -> None:
        super().__init__(params, tables)
        found = tables_of(params.tables, tables)
        self._digests = {name: table.digest for name, table in found.items()}
        readings: dict[str, list[Sequence[str]]] = defaultdict(list)
        for table in found.values():
            for _, characters in table.groups:
                for character in characters:
                    readings[character].append(characters)
        self._alike = {
            character: [other for other in groups[0] if other != character and not negates(other)]
            for character, groups in readings.items()
            if len(groups) == 1 and not all(other == character or negates(other) for other in groups[0])
        }

    @property
    def digests(self) -> Mapping[str, str]:
        """Of the tables."""
        return self._digests

    def vary(self, words: Sequence[Word], draw: Draw) -> str | None:
        """See the base class."""
        texts = [word.text for word in words]
        long = [at for at, word in enumerate(words) if word.free and word.language == "zh" and len(word.text) > 1]
        places = [at for at in long if any(character in self._alike for character in texts[at])]
        if not places:
            return None
        for at in draw.some(places, share_of(self.params.rate, len(long))):
            word = texts[at]
            spot = draw.pick([spot for spot, character in enumerate(word) if character in self._alike])
            texts[at] = word[:spot] + draw.pick(self._alike[word[spot]]) + word[spot + 1 :]
        return "".join(texts)
