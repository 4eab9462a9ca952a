"""The two forms of a card: Markdown, and one HTML file with plots as SVG, no scripts and nothing from another place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from gateway.cards.model_card import ModelCard, Table
from gateway.figures.plot import STYLE

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def markdown(card: ModelCard) -> str:
    """The card; what comes from data has no markup in it."""
    return "\n".join(_lines(card)) + "\n"


def _lines(card: ModelCard) -> Iterator[str]:
    yield f"# {_safe(card.title)}"
    for section in card.sections():
        yield f"\n## {section.title}\n"
        for note in section.notes:
            yield f"{_safe(note)}\n"
        if section.table is not None:
            yield from _table(section.table)


def _table(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(table.columns)} |"
    yield f"|{'|'.join('---:' if at in table.numbers else '---' for at in range(len(table.columns)))}|"
    for row in table.rows:
        yield f"| {' | '.join(map(_safe, row))} |"


def _safe(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def html(card: ModelCard) -> str:
    """The card as a page of its own."""
    return _template().render(title=card.title, sections=list(card.sections()), style=STYLE)


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return made.get_template("card.html")
