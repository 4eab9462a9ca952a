"""What both forms of a card show, in order: titles, sentences, and tables whose rows have counts to plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.cleaning.engine.card.statistics import SAMPLED_TEXTS, CardFigures


@dataclass(frozen=True, slots=True)
class CountTable:
    """Rows of a name and a count for each of `parts`; the shares are of the sum of a part's column."""

    title: str
    note: str
    parts: Sequence[str]
    rows: Sequence[tuple[str, Sequence[int]]]

    def share(self, row: int, part: int) -> float:
        """The share of a count in its part, 0 to 1."""
        total = sum(counts[part] for _, counts in self.rows)
        return self.rows[row][1][part] / total if total else 0.0


def facts(card: CardFigures) -> list[tuple[str, str]]:
    """The head of a card."""
    rows = [("built", card.create_time), ("digest", card.digest), ("records in", f"{card.records_in:,}")]
    rows += [(f"for {name}" if name == "training" else name, f"{part.records:,}") for name, part in card.parts.items()]
    if card.variants or card.dropped_variants:
        rows.append(("of these variants", f"{sum(card.variants.values()):,}"))
    rows.append(("rejected", f"{sum(card.rejected.values()):,}"))
    rows.append(("held out by", f"{card.holdout_fraction:g} of the records, by a hash of their content"))
    overlap = f"no equal text, {card.near_overlap:,} near duplicates"
    rows.append(("overlap of training and hold-out", overlap))
    rows += [(f"feedback: {name.replace('_', ' ')}", f"{count:,}") for name, count in sorted(card.feedback.items())]
    if card.erased:
        rows.append(("erased since", f"{card.erased:,} records"))
    return rows


def length_rows(card: CardFigures) -> tuple[Sequence[str], list[tuple[str, list[str]]]]:
    """Characters of the texts: the columns, and a row for each part."""
    columns = ("mean", "shortest", "5 %", "median", "95 %", "longest")
    rows = []
    for name, part in card.parts.items():
        figures = [part.quantile(share) for share in (0.05, 0.5, 0.95)]
        ends = (min(part.lengths, default=0), max(part.lengths, default=0))
        rows.append((name, [f"{n:,}" for n in (round(part.mean), ends[0], *figures, ends[1])]))
    return columns, rows


def count_tables(card: CardFigures) -> Iterator[CountTable]:
    """The plots."""
    parts = list(card.parts)
    lengths = {name: dict(part.histogram()) for name, part in card.parts.items()}
    steps = sorted({step for each in lengths.values() for step in each}, key=_first_number)
    rows = [(step, [lengths[part].get(step, 0) for part in parts]) for step in steps]
    yield CountTable("Lengths", "Characters of the text.", parts, rows)

    sampled = sum(sum(part.languages.values()) for part in card.parts.values())
    note = f"Guessed from the beginnings of {sampled:,} texts (at most {SAMPLED_TEXTS:,} of each part)."
    yield _values("Languages", note, card, [part.languages for part in card.parts.values()])
    yield _values("Sources", "", card, [part.sources for part in card.parts.values()])
    for label in card.labels():
        found = [part.values.get(label) or Counter[str]() for part in card.parts.values()]
        total = sum(map(Counter.total, found))
        records = sum(part.records for part in card.parts.values())
        note = "" if total == records else f"{records - total:,} records have none."
        yield _values(f"Attribute {label}", note, card, found)
    for title, counts in (("Variants by augmenter", card.variants), ("Dropped variants", card.dropped_variants)):
        if counts:
            yield CountTable(title, "", ["records"], [(name, [count]) for name, count in sorted(counts.items())])
    if card.rejected:
        ordered = sorted(card.rejected.items(), key=lambda item: (-item[1], item[0]))
        note = f"{sum(card.rejected.values()):,} of {card.records_in:,} records."
        yield CountTable("Rejected by reason", note, ["records"], [(reason, [count]) for reason, count in ordered])


def _values(title: str, note: str, card: CardFigures, by_part: Sequence[Counter[str]]) -> CountTable:
    total = sum(by_part, Counter[str]())
    names = sorted(total, key=lambda name: (-total[name], name))
    return CountTable(title, note, list(card.parts), [(name, [each[name] for each in by_part]) for name in names])


def free_attributes(card: CardFigures) -> list[tuple[str, int]]:
    """Attributes of too many values to count, with the records that have them."""
    labels, filled = set(card.labels()), Counter[str]()
    for part in card.parts.values():
        filled.update(part.filled)
    return [(name, count) for name, count in sorted(filled.items()) if name not in labels]


def _first_number(step: str) -> int:
    return int(step.partition(" ")[0].replace(",", ""))
