"""The two forms of a card: Markdown, and one HTML file with plots as SVG, no scripts and nothing from another place."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from gateway.cards.model_card import ModelCard
from gateway.figures.plot import STYLE
from services.kit.markdown import escaped, table


def markdown(card: ModelCard) -> str:
    """The card; what comes from data has no markup in it."""
    return "\n".join(_lines(card)) + "\n"


def _lines(card: ModelCard) -> Iterator[str]:
    yield f"# {escaped(card.title)}"
    for section in card.sections():
        yield f"\n## {section.title}\n"
        for note in section.notes:
            yield f"{escaped(note)}\n"
        if (shown := section.table) is not None:
            right = [at in shown.numbers for at in range(len(shown.columns))]
            yield from table(shown.columns, shown.rows, right)


def html(card: ModelCard) -> str:
    """The card as a page of its own."""
    return _template().render(title=card.title, sections=list(card.sections()), style=STYLE)


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return made.get_template("card.html")
