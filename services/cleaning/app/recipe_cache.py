"""A cache of compiled recipes: compiling reads dictionaries, which takes too long to do for every record."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from services.cleaning.domain.dataset import DatasetSpec
from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.engine.augmentation import Augmentation, Servers, compile_augmentation
from services.cleaning.engine.augmenter import SynonymTable, Tables, Translator
from services.cleaning.engine.compiler import CompiledRecipe, compile_recipe
from services.cleaning.engine.registry import Registry, default_augmenters
from services.kit.ids import content_digest

_KEPT = 128
_KEPT_BYTES = 256 * 1024 * 1024


class RecipeCache:
    """Compiles recipes and keeps the most recently used ones. Thread-safe."""

    def __init__(self, registry: Registry, tables: Tables | None = None, servers: Servers | None = None) -> None:
        """Without `tables` an augmentation that names one is refused, without `servers` one that asks a model."""
        self._registry, self._tables, self._servers = registry, tables or _NoTables(), servers
        self._augmenters = default_augmenters()
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, CompiledRecipe] = OrderedDict()

    def of(self, spec: DatasetSpec) -> CompiledRecipe:
        """The recipe of a data set; see `of_operators`."""
        return self.of_operators(spec.operators, spec.required_attributes)

    def augmentation(self, spec: DatasetSpec) -> Augmentation | None:
        """The compiled augmentation of a data set, by the tables as they are now; None without one.

        Raises:
            RecipeError: it cannot be applied.
        """
        if spec.augment is None:
            return None
        terms = _standard_terms(spec.operators)
        return compile_augmentation(self._augmenters, spec.augment, self._tables, terms, self._servers)

    def of_operators(
        self, operators: Sequence[OperatorSpec], required_attributes: Sequence[str] = ()
    ) -> CompiledRecipe:
        """The compiled recipe.

        Raises:
            RecipeError: it cannot be applied.
        """
        written = [[spec.name, dict(spec.params)] for spec in operators]
        key = content_digest([written, list(required_attributes)])
        with self._lock:
            found = self._compiled.get(key)
            if found is not None:
                self._compiled.move_to_end(key)
                return found
        # Outside the lock: a large recipe compiles for seconds, and records of other recipes must not wait for it.
        made = compile_recipe(self._registry, operators, required_attributes)
        with self._lock:
            self._compiled[key] = made
            while len(self._compiled) > 1 and (len(self._compiled) > _KEPT or self._bytes() > _KEPT_BYTES):
                self._compiled.popitem(last=False)
        return made

    def _bytes(self) -> int:
        return sum(recipe.memory_bytes for recipe in self._compiled.values())


class _NoTables:
    """Implements `Tables` without any."""

    def synonyms(self, name: str) -> SynonymTable:
        """See the protocol."""
        raise LookupError(f"{name!r} is not there: this service was started without a folder of tables")

    def translator(self, name: str) -> Translator:
        """See the protocol."""
        raise LookupError(f"{name!r} is not there: this service was started without a folder of models")


def _standard_terms(operators: Sequence[OperatorSpec]) -> set[str]:
    """What `term_map` writes: the terms that a recipe declares are the ones to keep."""
    found: set[str] = set()
    for each in operators:
        terms = each.params.get("terms") if each.name == "term_map" else None
        found.update(str(term) for term in terms.values() if term) if isinstance(terms, Mapping) else None
    return found
