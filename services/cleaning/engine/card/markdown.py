"""A data card as Markdown: tables, with bars of characters."""

from __future__ import annotations

from collections.abc import Iterator

from services.cleaning.engine.card.statistics import CardFigures
from services.cleaning.engine.card.tables import CountTable, count_tables, facts, free_attributes, length_rows
from services.kit.markdown import escaped, table

_BAR = 20


def markdown_card(card: CardFigures) -> str:
    """The card."""
    return "\n".join(_lines(card)) + "\n"


def _lines(card: CardFigures) -> Iterator[str]:
    yield f"# {escaped(card.name)}"
    yield ""
    yield from table(["", ""], [[label, value] for label, value in facts(card)], [False, False])
    yield "\n## Recipe\n"
    for number, (name, parameters) in enumerate(card.operators, 1):
        yield f"{number}. `{name}`" + (f" `{parameters.replace('`', chr(39))}`" if parameters else "")
    if not card.operators:
        yield "No operators: the records are as they came."
    columns, rows = length_rows(card)
    for counted in count_tables(card):
        yield f"\n## {escaped(counted.title)}\n"
        if counted.note:
            yield f"{counted.note}\n"
        if counted.title == "Lengths":
            yield from table(
                ["", *columns], [[name, *figures] for name, figures in rows], [False, *[True] * len(columns)]
            )
            yield ""
        yield from _counts(counted)
    if others := free_attributes(card):
        yield "\n## Other attributes\n"
        yield from (f"- {escaped(name)}: {count:,} records" for name, count in others)


def _counts(counted: CountTable) -> Iterator[str]:
    if not counted.rows:
        yield "No records."
        return
    header, right = [""], [False]
    for part in counted.parts:
        header += [part, "share", ""]
        right += [True, True, False]
    rows = []
    for number, (name, counts) in enumerate(counted.rows):
        cells = [name]
        for column, count in enumerate(counts):
            share = counted.share(number, column)
            cells += [f"{count:,}", f"{share:.1%}", "█" * round(share * _BAR)]
        rows.append(cells)
    yield from table(header, rows, right)
