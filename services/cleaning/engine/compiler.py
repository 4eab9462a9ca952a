"""Compiles a recipe: builds its operators, its canonical form and its digest."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.cleaning.domain.recipe import OperatorSpec, RecipeError
from services.cleaning.domain.record import Cleaned, Rejection
from services.cleaning.engine.batch import Batch
from services.cleaning.engine.explain import Explainer, Explanation
from services.cleaning.engine.limits import MAX_OPERATORS, MAX_PATTERNS, MAX_TERMS
from services.cleaning.engine.operator import FieldParams, RecordOperator, SetOperator, SetRecord
from services.cleaning.engine.registry import Registry
from services.kit.ids import content_digest

logger = logging.getLogger(__name__)

EMPTY_REASON = "empty_text"
FAILED_REASON = "operator_failed"
# With this many characters, arrays of 64-bit hashes fit a core's cache. More is slower; fewer means more calls.
_CHARS_AT_ONCE = 1 << 17
_RECORDS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class CompiledRecipe:
    """A recipe ready to run. Thread-safe.

    `canonical` has every operator with its version and all parameters, defaults included. `digest` is its sha256, so
    recipes with the same effect have the same digest.
    """

    digest: str
    canonical: Sequence[Mapping[str, Any]]
    columns: Sequence[str]
    record_operators: Sequence[RecordOperator[Any]]
    set_operators: Sequence[SetOperator[Any]]
    fields: Mapping[str, str]
    """Attributes that operators name in `fields`, each with the first place in the recipe that names it."""

    @property
    def memory_bytes(self) -> int:
        """Approximate memory of those operators whose memory depends on their parameters."""
        return sum(operator.memory_bytes for operator in (*self.record_operators, *self.set_operators))

    def clean(self, text: str, attributes: Mapping[str, str]) -> Cleaned:
        """Applies the single-record operators to one record."""
        return self._run([(text, attributes)])[0]

    def clean_batch(self, records: Iterable[tuple[str, Mapping[str, str]]]) -> list[Cleaned]:
        """Applies the single-record operators to (text, attributes) pairs; one verdict each, in order."""
        verdicts: list[Cleaned] = []
        part: list[tuple[str, Mapping[str, str]]] = []
        size = 0
        for record in records:
            part.append(record)
            size += len(record[0]) + sum(map(len, record[1].values()))
            if size >= _CHARS_AT_ONCE or len(part) >= _RECORDS_AT_ONCE:
                verdicts += self._run(part)
                part, size = [], 0
        return verdicts + self._run(part)

    def explain(self, text: str, attributes: Mapping[str, str]) -> Explanation:
        """Applies the single-record operators to one record, and reports what each of them did."""
        batch, explainer, position = Batch([(text, attributes)]), Explainer(text, attributes), -1
        try:
            for position in self._steps(batch):
                if batch.texts:
                    explainer.changed(position, batch.operator, batch.texts[0], batch.attributes[0])
            cleaned = batch.result()[0]
        except Exception as error:
            logger.exception("the operator %s failed on a record", batch.operator)
            cleaned = Cleaned("", dict(attributes), _failed(error, batch.operator))
            position += 1
        if cleaned.rejection is not None:
            explainer.dropped(max(position, 0), cleaned.rejection)
        return Explanation(cleaned, explainer.effects)

    def judge_set(self, records: Sequence[SetRecord]) -> dict[str, Rejection]:
        """Applies the set operators in order, each to what the previous ones kept.

        Returns:
            Rejections by the records' names.
        """
        alive = sorted(records, key=lambda record: (record.feedback, record.record_id, record.source))
        rejected: dict[str, Rejection] = {}
        for operator in self.set_operators:
            found = operator.judge(alive)
            rejected.update(
                {alive[position].name: replace(by, operator=operator.name) for position, by in found.items()}
            )
            alive = [record for position, record in enumerate(alive) if position not in found]
        return rejected

    def _run(self, records: list[tuple[str, Mapping[str, str]]]) -> list[Cleaned]:
        batch = Batch(records)
        try:
            for _ in self._steps(batch):
                pass
        except Exception as error:
            if len(records) > 1:
                return [verdict for record in records for verdict in self._run([record])]
            # A bug of an operator on one text must neither stop the other texts nor drop this one silently.
            logger.exception("the operator %s failed on a record", batch.operator)
            return [Cleaned("", dict(records[0][1]), _failed(error, batch.operator))]
        return batch.result()

    def _steps(self, batch: Batch) -> Iterator[int]:
        """Applies the operators; yields the position of each after it ran, and at the end the number of operators."""
        batch.drop_too_large()
        for position, operator in enumerate(self.record_operators):
            if not batch.texts:
                return
            batch.operator = operator.name
            operator.apply(batch)
            batch.drop_too_large()
            yield position
        batch.operator = ""
        batch.reject({i: Rejection(EMPTY_REASON) for i, text in enumerate(batch.texts) if not text})
        yield len(self.record_operators)


def compile_recipe(
    registry: Registry, operators: Sequence[OperatorSpec], required_attributes: Sequence[str] = ()
) -> CompiledRecipe:
    """Builds a recipe.

    Args:
        registry: finds the operators.
        operators: in the order in which they run; set operators come last.
        required_attributes: a record that lacks one after cleaning is dropped.

    Raises:
        RecipeError: an operator or a parameter is unknown or invalid, or an operator cannot run at its position.
    """
    record_operators: list[RecordOperator[Any]] = []
    set_operators: list[SetOperator[Any]] = []
    canonical: list[dict[str, Any]] = []
    columns: list[str] = list(required_attributes)
    fields: dict[str, str] = {}
    first_set: str | None = None
    _check_bounds(operators)
    for position, spec in enumerate(operators):
        operator = registry.build(spec, position)
        if isinstance(operator, SetOperator):
            if spec.name == "conflicting_labels" and first_set in ("exact_dedup", "near_dedup"):
                raise RecipeError.at(
                    f"operators[{position}].name",
                    f"conflicting_labels must come before {first_set}, which would hide the conflicts",
                )
            first_set = first_set or spec.name
            set_operators.append(operator)
        elif isinstance(operator, RecordOperator):
            if first_set is not None:
                raise RecipeError.at(
                    f"operators[{position}].name",
                    f"{spec.name} works on single records as they arrive, so it must come before {first_set}, "
                    "which works on the whole set when a version is built",
                )
            record_operators.append(operator)
            if isinstance(operator.params, FieldParams):
                for name in operator.params.parts[1] or ():
                    fields.setdefault(name, f"operators[{position}].params.fields ({spec.name})")
        columns += [column for column in operator.columns if column not in columns]
        canonical.append(_canonical(spec.name, operator))
    if required_attributes:
        spec = OperatorSpec("drop_if_missing_field", {"fields": list(required_attributes)})
        operator = registry.build(spec, len(operators))
        assert isinstance(operator, RecordOperator)
        record_operators.append(operator)
        canonical.append(_canonical(spec.name, operator))
    return CompiledRecipe(
        content_digest(canonical),
        tuple(canonical),
        tuple(columns),
        tuple(record_operators),
        tuple(set_operators),
        fields,
    )


def _failed(error: Exception, operator: str) -> Rejection:
    return Rejection(FAILED_REASON, f"error={type(error).__name__}", operator)


def _check_bounds(operators: Sequence[OperatorSpec]) -> None:
    if len(operators) > MAX_OPERATORS:
        raise RecipeError.at("operators", f"has {len(operators)} operators; a recipe may have at most {MAX_OPERATORS}")
    patterns, terms = 0, 0
    for position, spec in enumerate(operators):
        patterns += spec.name == "regex_replace"
        given = spec.params.get("terms")
        terms += len(given) if spec.name == "term_map" and isinstance(given, Mapping) else 0
        if patterns > MAX_PATTERNS:
            description = f"a recipe may have at most {MAX_PATTERNS} regex_replace operators"
            raise RecipeError.at(f"operators[{position}]", description)
        if terms > MAX_TERMS:
            description = f"the term_map operators of a recipe may have at most {MAX_TERMS} terms together"
            raise RecipeError.at(f"operators[{position}].params.terms", description)


def _canonical(name: str, operator: RecordOperator[Any] | SetOperator[Any] | Any) -> dict[str, Any]:
    key = {"key": operator.key_id} if operator.key_id else {}
    return {"name": name, "version": operator.version, "params": operator.params.model_dump(mode="json"), **key}
