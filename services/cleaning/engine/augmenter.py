"""Augmenters: each makes a variant of a text by one kind of change. They compute only; tables are handed to them.

`services.cleaning.engine.rewriter` has those whose variants a model writes.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

from pydantic import Field

from services.cleaning.engine.operator import Params, ParamsError
from services.cleaning.engine.words import Word
from services.kit.ids import sha256_hex

T = TypeVar("T")
_FEW = 4


class AugmenterParams(Params):
    """`rate`: share of what can be changed that is; at least one is."""

    rate: float = Field(0.1, gt=0, le=1)


P = TypeVar("P", bound=Params)


class Draw:
    """Random choices that follow from what it is given, on every machine and with every release of Python."""

    def __init__(self, *parts: str) -> None:
        # `Random.random` of a seed is the one sequence that Python promises to keep.
        self._random = random.Random(int(sha256_hex(*parts)[:16], 16))  # noqa: S311 - no secret

    def below(self, count: int) -> int:
        """A whole number from 0, below `count`."""
        return int(self._random.random() * count)

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def few(self, items: Sequence[T]) -> Iterator[T]:
        """A few of the items, with repetition."""
        return (self.pick(items) for _ in range(_FEW if items else 0))

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """`count` of the items without repetition, in random order; all if there are fewer."""
        left, found = list(items), []
        for _ in range(min(count, len(left))):
            at = self.below(len(left))
            left[at], left[-1] = left[-1], left[at]
            found.append(left.pop())
        return found


@dataclass(frozen=True, slots=True)
class SynonymTable:
    """Groups of synonyms: their class (`n`, `v`, `a`, `r`; empty of any) and their words. `digest` is the file's.

    The groups of class `h` have characters that sound alike.
    """

    digest: str
    groups: Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Translator:
    """A seq2seq model of this machine that translates in one direction: its folder, and the digest of its files."""

    folder: str
    digest: str


class Tables(Protocol):
    """Tables and models of this machine by name, as recipes name them."""

    def synonyms(self, name: str) -> SynonymTable:
        """A table of synonyms.

        Raises:
            LookupError: there is none of this name; it says where it was looked for and what to do.
        """
        ...

    def translator(self, name: str) -> Translator:
        """A model that translates.

        Raises:
            LookupError: there is none of this name, or it cannot be used; it says why and what to do.
        """
        ...


class VariantMaker(ABC, Generic[P]):
    """What makes variants, with its parameters: an `Augmenter`, or a `Rewriter`, which asks a model.

    `version` is part of a data set's digest: increase it when the same parameters give other variants than before.
    """

    version: ClassVar[int] = 1
    params_type: ClassVar[type[Params]] = AugmenterParams

    def __init__(self, params: P, tables: Tables) -> None:
        """Reads the tables.

        Raises:
            ParamsError: a table is not there, or a parameter cannot be used.
        """
        self.params = params
        self.tables = tables
        # Its name in recipes, set by the registry.
        self.name = ""

    @property
    def digests(self) -> Mapping[str, str]:
        """Digests of the tables that it uses, by name: with another table it makes other variants."""
        return {}


class Augmenter(VariantMaker[P]):
    """Makes variants by itself."""

    @abstractmethod
    def vary(self, words: Sequence[Word], draw: Draw) -> str | None:
        """The text of a variant; None if there is nothing that it can change.

        Args:
            words: the text, see `services.cleaning.engine.words`; what is not free or fixed must stay.
            draw: the source of all randomness.
        """


def tables_of(names: Sequence[str], tables: Tables) -> dict[str, SynonymTable]:
    """The tables that the parameter `tables` names.

    Raises:
        ParamsError: one is not there.
    """
    found: dict[str, SynonymTable] = {}
    for number, name in enumerate(names):
        try:
            found[name] = tables.synonyms(name)
        except LookupError as error:
            raise ParamsError(f"tables[{number}]", str(error.args[0])) from error
    return found


def share_of(rate: float, count: int) -> int:
    """How many of `count` things a rate means: at least one."""
    return max(1, round(rate * count))
