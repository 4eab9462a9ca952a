"""Operators and augmenters by name. The module of one is imported when a recipe first asks for it, not at the start."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from services.cleaning.domain.recipe import OperatorSpec, RecipeError
from services.cleaning.engine import augmenters, operators
from services.cleaning.engine.augmenter import VariantMaker
from services.cleaning.engine.operator import Operator, ParamsError


def _known(what: str, given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{given!r} is not a known {what}{hint} (known: {', '.join(sorted(known)) or 'none'})"


class Registry:
    """Names of operators, and the places of their classes (`module:Class`), which derive from `base`.

    Operators that need a secret get `key`; empty where there is none.
    """

    def __init__(self, base: type[Any] = Operator, what: str = "operator", key: bytes = b"") -> None:
        self._base, self._what, self._key = base, what, key
        self._places: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._places)

    def register(self, name: str, place: str) -> None:
        """Adds an operator.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._places:
            raise ValueError(f"two {self._what}s are called {name!r}: {self._places[name]} and {place}")
        self._places[name] = place

    def operator_type(self, name: str) -> type[Any]:
        """The class of a registered operator; its module is imported now.

        Raises:
            KeyError: the operator is unknown.
            ImportError, AttributeError, TypeError: its place does not have an operator class.
        """
        module, _, kind = self._places[name].partition(":")
        found: object = getattr(importlib.import_module(module), kind)
        if not (isinstance(found, type) and issubclass(found, self._base)):
            raise TypeError(f"{kind} is not a subclass of {self._base.__module__}.{self._base.__name__}")
        return found

    def build(self, spec: OperatorSpec, position: int, place: str = "operators", *parts: Any) -> Any:
        """The operator of a recipe's entry.

        Args:
            spec: name and parameters.
            position: in the list.
            place: of the list in the request, for errors.
            parts: what the class takes after its parameters.

        Raises:
            RecipeError: with the position, the operator, the parameter and what was probably meant.
        """
        path = f"{place}[{position}]"
        if spec.name not in self._places:
            raise RecipeError.at(f"{path}.name", _known(self._what, spec.name, self.names))
        try:
            kind = self.operator_type(spec.name)
        except (ImportError, AttributeError, TypeError) as error:
            # A bug in an installed package, which the recipe's author needs to know.
            wrong = f"{spec.name} cannot be loaded from {self._places[spec.name]}: {error}"
            raise RecipeError.at(f"{path}.name", wrong) from error
        try:
            operator = kind(kind.params_type.model_validate(dict(spec.params)), *parts)
            operator.name = spec.name
            if isinstance(operator, Operator):
                operator.key_id = operator.use_key(self._key)
            return operator
        except ParamsError as error:
            raise RecipeError.at(f"{path}.params.{error.parameter}", f"{spec.name}: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
                description = _known(f"parameter of {spec.name}", name, list(kind.params_type.model_fields))
            else:
                description = f"{spec.name}: {first['msg']}"
            raise RecipeError.at(f"{path}.params.{name}" if name else f"{path}.params", description) from error


PLUGINS = "tidemill.operators"
"""Group of the entry points by which other packages provide operators: name = "package.module:Class"."""
AUGMENTER_PLUGINS = "tidemill.augmenters"
"""The same of augmenters."""


def default_registry(key: bytes = b"") -> Registry:
    """Tidemill's own operators, and those of installed packages.

    Args:
        key: the mesh's secret, for operators that need one.

    Raises:
        ValueError: two operators have the same name.
    """
    return _with_plugins(own_registry(key), PLUGINS)


def default_augmenters() -> Registry:
    """Tidemill's own augmenters, and those of installed packages.

    Raises:
        ValueError: two augmenters have the same name.
    """
    return _with_plugins(own_augmenters(), AUGMENTER_PLUGINS)


def own_registry(key: bytes = b"") -> Registry:
    """Tidemill's own operators: `exact_dedup` is `ExactDedup` in the module of that name."""
    return _with_modules(Registry(key=key), operators)


def own_augmenters() -> Registry:
    """Tidemill's own augmenters, found in the same way."""
    return _with_modules(Registry(VariantMaker, "augmenter"), augmenters)


def _with_modules(registry: Registry, package: ModuleType) -> Registry:
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        name = module.name.rpartition(".")[2]
        registry.register(name, f"{module.name}:{name.title().replace('_', '')}")
    return registry


def _with_plugins(registry: Registry, group: str) -> Registry:
    for plugin in entry_points(group=group):
        registry.register(plugin.name, plugin.value)
    return registry
