"""What a recipe made of a record, as a person reads it: each operator's edits, and the text before and after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from tidemill.cleaning.v1.cleaning_service_pb2 import (
    CleanTextResponse,
    DatasetExplanation,
    ExplainRecordResponse,
    FieldChange,
    OperatorEffect,
    OriginalKeeping,
    TextEdit,
)

from gateway.cli.record_changes import PARTS, RecordChange, RecordChanges
from gateway.cli.views.text import shorten

_EDITS = 5
"""Edits of one field that are shown; an operator may make thousands."""
_EDIT_WIDTH = 48
_PLACES = {
    DatasetExplanation.PLACEMENT_TRAIN: ("in the training part", "green"),
    DatasetExplanation.PLACEMENT_HOLDOUT: ("in the hold-out", "green"),
    DatasetExplanation.PLACEMENT_REJECTED: ("rejected", "yellow"),
    DatasetExplanation.PLACEMENT_ABSENT: ("not contained", "yellow"),
    DatasetExplanation.PLACEMENT_HELD_BACK: ("held back to measure what was learnt", "green"),
}
_ORIGINALS = {
    OriginalKeeping.ORIGINAL_KEEPING_ENCRYPTED: "its original is stored encrypted",
    OriginalKeeping.ORIGINAL_KEEPING_NONE: "its original is not kept: here is what recipes made of it as it arrived",
}


def effects_table(effects: Iterable[OperatorEffect]) -> Table:
    """One line for each edit: the operator, the field, and what became of it."""
    table = Table.grid(padding=(0, 2))
    for style in ("bold", "bright_black", ""):
        table.add_column(style=style, overflow="fold")
    for effect in effects:
        name = effect.operator or "the recipe"
        for change in effect.changes:
            for line in _lines(change):
                table.add_row(name, change.field, line)
                name = ""
        if effect.omitted_edits:
            table.add_row(name, "", Text(f"and {effect.omitted_edits:,} edits more", "bright_black"))
            name = ""
        if effect.rejected_reason:
            table.add_row(name, "", rejection(effect.rejected_reason, effect.rejected_detail))
    return table


def rejection(reason: str, detail: str) -> Text:
    """`rejected: too_short (3 characters, at least 4)`."""
    return Text.assemble(("rejected: ", "yellow"), reason, f" ({detail})" if detail else "")


def _lines(change: FieldChange) -> list[Text]:
    edits = [_edit(edit) for edit in change.edits[:_EDITS]]
    if change.removed:
        return [Text("removed", "yellow")]
    if change.added:
        edits = [Text.assemble(("added ", "green"), each) for each in edits] or [Text("added", "green")]
    if len(change.edits) > _EDITS:
        edits.append(Text(f"and {len(change.edits) - _EDITS:,} edits more", "bright_black"))
    return edits


def _edit(edit: TextEdit) -> Text:
    parts = [(f"{shown(edit.before)}", "red")] if edit.before else []
    parts += [(f"{shown(edit.after)}", "green")] if edit.after else []
    if not edit.before or not edit.after:
        verb = "deletes " if edit.before else "inserts "
        return Text.assemble(f"at {edit.start:,} ", verb, *parts)
    return Text.assemble(f"at {edit.start:,} ", parts[0], " → ", parts[1])


def shown(text: str) -> str:
    """A text in quotes on one line; what has no shape of its own is escaped, so that it can be seen."""
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"“{shorten(visible, _EDIT_WIDTH)}”" if visible.strip() else f"“{visible}”"


def shown_changes(found: RecordChanges, count: int) -> Iterator[RenderableType]:
    """How many records differ between two versions, and the first of each kind, one line for each difference."""
    if not any(found.counts.values()):
        yield Text("The records are the same, and in the same parts.")
        return
    shown_kinds = [f"{number:,} {kind}" for kind, number in found.counts.items() if number]
    yield Text(f"records: {', '.join(shown_kinds)}", "bold")
    table = Table.grid(padding=(0, 2))
    for style in ("bold", "cyan", ""):
        table.add_column(style=style, overflow="fold")
    for change in found.first(count):
        title, name = change.kind, f"{change.source}/{change.record_id}"
        for line in _differences(change):
            table.add_row(title, name, line)
            title = name = ""
    if count:
        yield table


def _differences(change: RecordChange) -> Iterator[Text]:
    old, new = change.before, change.after
    if old is None or new is None:
        row = old if new is None else new
        assert row is not None
        yield Text.assemble((f"{PARTS[row['part']]}  ", "bright_black"), _content(row))
        return
    if old["part"] != new["part"]:
        reason = rejection(new["reason"], new["detail"] or "") if new["part"] == "rejected" else PARTS[new["part"]]
        yield Text.assemble(f"{PARTS[old['part']]} → ", reason)
    if "rejected" in (old["part"], new["part"]) and old["part"] != new["part"]:
        yield _content(old if new["part"] == "rejected" else new)
        return
    for name in sorted({*old, *new} - {"part"}):
        before, after = (str(row.get(name) or "") for row in (old, new))
        if before != after:
            start = _first_difference(before, after)
            parts = [shown(f"{'…' if start else ''}{text[start:]}") for text in (before, after)]
            yield Text.assemble((f"{name}  ", "bright_black"), (parts[0], "red"), " → ", (parts[1], "green"))


def _content(row: Mapping[str, Any]) -> Text:
    if row["part"] == "rejected":
        return rejection(row["reason"], row["detail"] or "")
    return Text(shown(row["text"]))


def _first_difference(before: str, after: str) -> int:
    """Where what is shown of two texts begins: a few characters before they differ."""
    same = next((at for at, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    return max(0, same - _EDIT_WIDTH // 4)


def preview(title: str, before: str, cleaned: CleanTextResponse, width: int) -> RenderableType:
    """One record of `tidemill clean preview`.

    Args:
        title: where it came from.
        before: its text.
        cleaned: the answer of CleanText with `explain`.
        width: columns of the terminal.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(width=6, style="bright_black")
    table.add_column(no_wrap=True)
    space = max(20, width - 12)
    table.add_row("before", Text(shorten(before, space)))
    if cleaned.rejected_reason:
        after: RenderableType = rejection(cleaned.rejected_reason, cleaned.rejected_detail)
    elif cleaned.text == before:
        after = Text("the same text", "bright_black")
    else:
        after = Text(shorten(cleaned.text, space), "green")
    table.add_row("after", after)
    for each in cleaned.variants:
        text = shorten(each.text, space) if each.text else "(a model writes it when a version is built)"
        table.add_row("also", Text.assemble(text, (f"  {each.augmenter}", "bright_black")))
    parts: list[RenderableType] = [Text(title, "bold cyan"), Padding(table, (0, 0, 0, 2), expand=False)]
    if cleaned.effects:
        parts.append(Padding(effects_table(cleaned.effects), (0, 0, 0, 4), expand=False))
    return Group(*parts)


def explanation(found: ExplainRecordResponse, models: Mapping[str, list[str]] | None) -> RenderableType:
    """A record's way: its source, what each data set made of it, and which models learnt from it.

    Args:
        found: the answer of ExplainRecord.
        models: model versions by the data set's version that taught them; None if they are not known.
    """
    came = f"brought by {found.import_name}" if found.import_name else "pushed by a caller"
    gone = "; gone from its source, so no later version contains it" if found.withdrawn else ""
    owner = f", of the tenant {found.tenant}" if found.tenant else ""
    parts: list[RenderableType] = [
        *([Text(f"{found.variant_id} is a variant of a record:", "bold")] if found.variant_id else []),
        Text(found.name, "bold cyan"),
        Text(f"  source {found.source}, {came}{owner}{gone}"),
    ]
    if found.original in _ORIGINALS:
        parts.append(Text(f"  {_ORIGINALS[found.original]}", "yellow"))
    kept = found.original != OriginalKeeping.ORIGINAL_KEEPING_NONE
    unchanged = "no operator changed it" if kept else "what each operator did is not known"
    if not found.datasets:
        parts.append(Text("  No data set takes this source.", "yellow"))
    for each in found.datasets:
        made = _dataset(each, models, unchanged)
        parts += [Text(), Text(each.dataset, "bold"), Padding(made, (0, 0, 0, 2), expand=False)]
    return Group(*parts)


def _dataset(found: DatasetExplanation, models: Mapping[str, list[str]] | None, unchanged: str) -> RenderableType:
    parts: list[RenderableType] = [effects_table(found.effects)] if found.effects else [Text(unchanged)]
    if found.text:
        parts.append(Text.assemble(("cleaned  ", "bright_black"), found.text))
        parts += [
            Text.assemble((f"{name}  ", "bright_black"), value) for name, value in sorted(found.attributes.items())
        ]
    if not found.dataset_version:
        return Group(*parts, Text("There is no version yet.", "bright_black"))
    words, style = _PLACES.get(found.placement, ("unknown", "yellow"))
    parts.append(Text.assemble(f"{found.dataset_version}: ", (words, style)))
    if found.rejected_reason:
        by = f" by {found.rejected_operator}" if found.rejected_operator else ""
        parts.append(Text.assemble("  ", rejection(found.rejected_reason, found.rejected_detail), by))
    if found.placement == DatasetExplanation.PLACEMENT_TRAIN:
        parts += [
            Text.assemble("  variant ", each.record_id, (f" by {each.augmenter}  ", "bright_black"), each.text)
            for each in found.variants
        ]
        if models is not None:
            learnt = models.get(found.dataset_version, [])
            parts.append(Text(f"  taught {', '.join(learnt)}" if learnt else "  no model has learnt from this version"))
    return Group(*parts)
