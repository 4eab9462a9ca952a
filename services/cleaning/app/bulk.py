"""Cleans files in bulk: single records part by part, wherever an engine runs them, then the operators on the whole set.

A part is a run of rows of one file. Parts depend on the files alone, so the verdicts, and the files written, are the
same for every engine and number of processes. A part that was finished is not cleaned again after an interruption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.cleaning.app.snapshot import refuse_unknown_fields
from services.cleaning.domain.record import Rejection
from services.cleaning.engine.compiler import CompiledRecipe
from services.cleaning.engine.operator import SetRecord
from services.kit.errors import InvalidArgumentError
from services.kit.ids import record_name

FORMAT = 1
"""Increase it when the files that are written get another layout or meaning."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a file that are cleaned together; `key` changes when the file, the recipe or the columns do."""

    number: int
    file: str
    groups: tuple[int, ...]
    first_row: int
    rows: int
    key: str


@dataclass(frozen=True, slots=True)
class PartReport:
    """What became of a part's records before the operators on the whole set."""

    part: int
    records: int
    kept: int
    rejected_by_reason: Mapping[str, int] = field(default_factory=dict)
    rejected_by_operator: Mapping[str, int] = field(default_factory=dict)
    attributes: Sequence[str] = ()
    """Names of the attributes that its records had before or have after cleaning."""


@dataclass(frozen=True, slots=True)
class BulkSummary:
    """What a run wrote."""

    records: int
    kept: int
    rejected_by_reason: Mapping[str, int]
    rejected_by_operator: Mapping[str, int]
    recipe_digest: str
    set_operators: Sequence[str]
    """Operators on the whole set, all of which were applied."""
    reused_parts: int
    """Parts that an interrupted run had finished."""


class PartFiles(Protocol):
    """What is read, and where it is written."""

    def finished(self, part: Part) -> PartReport | None:
        """The report of a part that is already cleaned as asked; None if it has to be cleaned."""
        ...

    def kept(self, part: Part) -> Iterator[SetRecord]:
        """The records that a cleaned part kept, in order."""
        ...

    def publish(
        self, parts: Sequence[Part], dropped: Mapping[str, Rejection], manifest: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Writes the output, without the dropped records, and makes it visible as a whole."""
        ...


class PartEngine(Protocol):
    """Runs the cleaning of parts."""

    def run(self, parts: Sequence[Part]) -> Iterable[PartReport]:
        """The reports of the parts, in any order.

        Raises:
            TidemillError: a part cannot be cleaned, or the engine cannot work.
        """
        ...


Progressed = Callable[[str, int, int], None]
"""Gets the phase, and how many of how many records are done."""


def clean_in_bulk(
    recipe: CompiledRecipe, parts: Sequence[Part], files: PartFiles, engine: PartEngine, progressed: Progressed
) -> BulkSummary:
    """Cleans parts and publishes the output.

    Raises:
        InvalidArgumentError: two records have the same source and id.
        FailedPreconditionError: an operator names an attribute that no record has.
        TidemillError: a part cannot be cleaned; what is finished is reused by the next run.
    """
    found = {part.number: report for part in parts if (report := files.finished(part)) is not None}
    reused = len(found)
    total = sum(part.rows for part in parts)
    done = sum(report.records for report in found.values())
    progressed("clean", done, total)
    for report in engine.run([part for part in parts if part.number not in found]):
        found[report.part] = report
        done += report.records
        progressed("clean", done, total)
    reports = [found[part.number] for part in parts]
    if total:
        refuse_unknown_fields(recipe, {name for report in reports for name in report.attributes})
    dropped: dict[str, Rejection] = {}
    kept = sum(report.kept for report in reports)
    if recipe.set_operators:
        progressed("deduplicate", 0, kept)
        dropped = recipe.judge_set(_distinct(parts, files))
    reasons = _total(report.rejected_by_reason for report in reports)
    operators = _total(report.rejected_by_operator for report in reports)
    reasons.update(rejection.reason for rejection in dropped.values())
    operators.update(rejection.operator for rejection in dropped.values() if rejection.operator)
    summary = BulkSummary(
        total,
        kept - len(dropped),
        dict(sorted(reasons.items())),
        dict(sorted(operators.items())),
        recipe.digest,
        tuple(operator.name for operator in recipe.set_operators),
        reused,
    )
    progressed("write", 0, total)
    files.publish(parts, dropped, _manifest(recipe, summary))
    progressed("write", total, total)
    return summary


def _distinct(parts: Sequence[Part], files: PartFiles) -> list[SetRecord]:
    """All kept records; the operators on the whole set identify records by source and id."""
    records: list[SetRecord] = []
    seen: set[str] = set()
    for part in parts:
        for record in files.kept(part):
            if record.name in seen:
                raise InvalidArgumentError(
                    f"{part.file}: the record {record_name(record.source, record.record_id)} occurs twice in the "
                    "input. Give every record of a source an id of its own, or name another column with --id-column.",
                    reason="RECORD_TWICE",
                    metadata={"file": part.file, "record": record.name},
                )
            seen.add(record.name)
            records.append(record)
    return records


def _total(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def _manifest(recipe: CompiledRecipe, summary: BulkSummary) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "recipe": {"digest": recipe.digest, "operators": list(recipe.canonical)},
        "counts": {
            "records_in": summary.records,
            "kept": summary.kept,
            "rejected": summary.records - summary.kept,
            "rejected_by_reason": dict(summary.rejected_by_reason),
            "rejected_by_operator": dict(summary.rejected_by_operator),
        },
    }
