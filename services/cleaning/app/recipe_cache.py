"""A cache of compiled recipes: compiling reads dictionaries, which takes too long to do for every record."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from services.cleaning.domain.dataset import DatasetSpec
from services.cleaning.domain.recipe import OperatorSpec
from services.cleaning.engine.compiler import CompiledRecipe, compile_recipe
from services.cleaning.engine.registry import Registry
from services.kit.ids import content_digest

_KEPT = 128
_KEPT_BYTES = 256 * 1024 * 1024


class RecipeCache:
    """Compiles recipes and keeps the most recently used ones. Thread-safe."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, CompiledRecipe] = OrderedDict()

    def of(self, spec: DatasetSpec) -> CompiledRecipe:
        """The recipe of a data set; see `of_operators`."""
        return self.of_operators(spec.operators, spec.required_attributes)

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
