"""The world of the example: tickets of customers, and which team each of them is for.

The texts are Chinese reviews of hotels, books and computers. Until the drift customers write of hotels only: complaints
are for the front desk, praise is for guest relations. Then a shop opens, whose two teams are new to every model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Kind(StrEnum):
    """What a ticket is about."""

    HOTEL = "hotel"
    BOOK = "book"
    COMPUTER = "computer"


@dataclass(frozen=True, slots=True)
class Ticket:
    """A text, and its team, which the mesh never sees unless the author names it."""

    text: str
    label: str
    kind: Kind


HOTEL_TEAMS = {"positive": "guest relations", "negative": "front desk"}
"""The team of a ticket about hotels, by what the review says."""
_SHOP_TEAMS = {Kind.BOOK: "bookshop", Kind.COMPUTER: "repairs"}

_WORDS = {
    Kind.HOTEL: ("酒店", "房间", "宾馆", "前台", "入住", "早餐", "住"),
    Kind.BOOK: ("书", "作者", "小说", "阅读", "故事"),
    Kind.COMPUTER: ("电脑", "笔记本", "屏幕", "键盘", "系统", "内存", "驱动", "硬盘"),
}


def _kind_of(text: str) -> Kind | None:
    """The kind of which a text clearly is."""
    counts = {kind: sum(text.count(word) for word in words) for kind, words in _WORDS.items()}
    [(first, most), (_, second), _] = sorted(counts.items(), key=lambda item: -item[1])
    return first if most > 2 * second else None


class World:
    """Hands out tickets, each of them once."""

    def __init__(self, reviews: Path, seed: int = 0) -> None:
        """Reads the reviews of `pipelines/reviews.yaml`.

        Args:
            reviews: JSON lines with `text` and `label`.
            seed: decides the order.
        """
        with reviews.open(encoding="utf-8") as lines:
            sentiments = {item["text"]: item["label"] for item in map(json.loads, lines)}
        self._random = random.Random(seed)  # noqa: S311 - a simulation
        self._left: dict[Kind, list[Ticket]] = {kind: [] for kind in Kind}
        for text, sentiment in sentiments.items():
            kind = _kind_of(text)
            if kind is not None:
                self._left[kind].append(Ticket(text, _SHOP_TEAMS.get(kind) or HOTEL_TEAMS[sentiment], kind))
        for tickets in self._left.values():
            self._random.shuffle(tickets)
        self.drifted = False

    def take(self, kind: Kind, count: int) -> list[Ticket]:
        """Tickets of a kind, taken out of the world.

        Raises:
            ValueError: fewer are left.
        """
        left = self._left[kind]
        if len(left) < count:
            raise ValueError(f"{len(left)} tickets of the kind {kind} are left, {count} are wanted")
        taken, self._left[kind] = left[:count], left[count:]
        return taken

    def stream(self) -> Iterator[Ticket]:
        """What customers write, one after the other, until all tickets are used up.

        Once those of a kind are, customers write of what is left; of hotels only as long as there is no shop.
        """
        while True:
            about_shop = self.drifted and self._random.random() < SHOP_AFTER_DRIFT
            kind = self._random.choice(tuple(_SHOP_TEAMS)) if about_shop else Kind.HOTEL
            if self.drifted and not self._left[kind]:
                kind = max(self._left, key=lambda each: len(self._left[each]))
            if not self._left[kind]:
                return
            yield self._left[kind].pop()


SHOP_AFTER_DRIFT = 0.7
"""Share of the tickets that are about books and computers once the shop is open."""


def write_tickets(file: Path, tickets: Sequence[Ticket]) -> None:
    """Tickets with their teams, as JSON lines for a pipeline."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": ticket.text, "label": ticket.label}, ensure_ascii=False) for ticket in tickets)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
