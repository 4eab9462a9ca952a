"""A data card as Markdown: tables, with bars of characters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from services.cleaning.engine.card.statistics import CardFigures
from services.cleaning.engine.card.tables import CountTable, count_tables, facts, free_attributes, length_rows

_BAR = 20
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def markdown_card(card: CardFigures) -> str:
    """The card."""
    return "\n".join(_lines(card)) + "\n"


def _lines(card: CardFigures) -> Iterator[str]:
    yield f"# {_safe(card.name)}"
    yield ""
    yield from _table(["", ""], [[label, value] for label, value in facts(card)], [False, False])
    yield "\n## Recipe\n"
    for number, (name, parameters) in enumerate(card.operators, 1):
        yield f"{number}. `{name}`" + (f" `{parameters.replace('`', chr(39))}`" if parameters else "")
    if not card.operators:
        yield "No operators: the records are as they came."
    columns, rows = length_rows(card)
    for table in count_tables(card):
        yield f"\n## {_safe(table.title)}\n"
        if table.note:
            yield f"{table.note}\n"
        if table.title == "Lengths":
            yield from _table(
                ["", *columns], [[name, *figures] for name, figures in rows], [False, *[True] * len(columns)]
            )
            yield ""
        yield from _counts(table)
    if others := free_attributes(card):
        yield "\n## Other attributes\n"
        yield from (f"- {_safe(name)}: {count:,} records" for name, count in others)


def _counts(table: CountTable) -> Iterator[str]:
    if not table.rows:
        yield "No records."
        return
    header, right = [""], [False]
    for part in table.parts:
        header += [part, "share", ""]
        right += [True, True, False]
    rows = []
    for number, (name, counts) in enumerate(table.rows):
        cells = [name]
        for column, count in enumerate(counts):
            share = table.share(number, column)
            cells += [f"{count:,}", f"{share:.1%}", "█" * round(share * _BAR)]
        rows.append(cells)
    yield from _table(header, rows, right)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "|".join("---:" if each else "---" for each in right) + "|"
    for row in rows:
        yield "| " + " | ".join(map(_safe, row)) + " |"


def _safe(text: str) -> str:
    """Text without markup, on one line; a value of an attribute may be anything."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())) if text else ""
