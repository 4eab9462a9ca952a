"""A data card as one HTML file: plots as inline SVG, no scripts, nothing from another place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from services.cleaning.engine.card.statistics import CardFigures
from services.cleaning.engine.card.tables import CountTable, count_tables, facts, free_attributes, length_rows

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .9rem .15rem 0; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; } code { font-size: .9em; } .note { color: #667; }
svg text { font: 13px system-ui, sans-serif; fill: #1c2733; } svg .v { fill: #667; }
@media (prefers-color-scheme: dark) {
body { background: #10151b; color: #dde5ee; } svg text { fill: #dde5ee; } .note, svg .v { color: #9ab; fill: #9ab; } }
"""
_COLORS = ("#2f7ed8", "#e08a2e", "#5aa469", "#8d6cab")
_NAME, _PLOT, _COUNT, _ROW = 220, 420, 150, 18


def html_card(card: CardFigures) -> str:
    """The card."""
    body = "\n".join(_parts(card))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(card.name)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _parts(card: CardFigures) -> Iterator[str]:
    yield f"<h1>{escape(card.name)}</h1>"
    yield _table((), [(label, [value]) for label, value in facts(card)], numbers=False)
    yield "<h2>Recipe</h2>"
    if card.operators:
        items = "".join(f"<li><code>{escape(f'{name} {given}'.rstrip())}</code></li>" for name, given in card.operators)
        yield f"<ol>{items}</ol>"
    else:
        yield "<p>No operators: the records are as they came.</p>"
    for table in count_tables(card):
        yield f"<h2>{escape(table.title)}</h2>"
        if table.note:
            yield f'<p class="note">{escape(table.note)}</p>'
        if table.title == "Lengths":
            yield _table(*length_rows(card), numbers=True)
        yield _plot(table)
    if others := free_attributes(card):
        yield "<h2>Other attributes</h2>"
        yield _table((), [(name, [f"{count:,} records"]) for name, count in others], numbers=False)


def _table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], *, numbers: bool) -> str:
    kind = ' class="n"' if numbers else ""
    head = "<tr><th></th>" + "".join(f"<th{kind}>{escape(name)}</th>" for name in columns) + "</tr>" if columns else ""
    body = "".join(
        f"<tr><th>{escape(name)}</th>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for name, cells in rows
    )
    return f"<table>{head}{body}</table>"


def _plot(table: CountTable) -> str:
    """Bars of the shares; the parts of a row are below each other."""
    if not table.rows:
        return "<p>No records.</p>"
    bars, y = [], 0
    if len(table.parts) > 1:
        at = _NAME
        for number, part in enumerate(table.parts):
            bars.append(f'<rect x="{at}" y="3" width="12" height="12" fill="{_COLORS[number % 4]}"/>')
            bars.append(f'<text x="{at + 18}" y="14">{escape(part)}</text>')
            at += 30 + 9 * len(part)
        y = _ROW + 8
    for row, (name, counts) in enumerate(table.rows):
        shown = name if len(name) <= 30 else name[:29] + "…"
        bars.append(f'<text x="{_NAME - 10}" y="{y + 13}" text-anchor="end">{escape(shown)}</text>')
        for column, count in enumerate(counts):
            share = table.share(row, column)
            width = max(share * _PLOT, 1 if count else 0)
            bars.append(f'<rect x="{_NAME}" y="{y}" width="{width:.1f}" height="14" fill="{_COLORS[column % 4]}"/>')
            bars.append(f'<text class="v" x="{_NAME + width + 6:.1f}" y="{y + 12}">{count:,} ({share:.1%})</text>')
            y += _ROW
        y += 4 if len(counts) > 1 else 0
    width = _NAME + _PLOT + _COUNT
    return f'<svg role="img" width="{width}" height="{y + 4}" viewBox="0 0 {width} {y + 4}">{"".join(bars)}</svg>'
