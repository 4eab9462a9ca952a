"""Operators by name. The module of an operator is imported when a recipe first asks for it, not at the start."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from services.cleaning.domain.recipe import OperatorSpec, RecipeError
from services.cleaning.engine import operators
from services.cleaning.engine.operator import Operator, ParamsError


def _known(what: str, given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{given!r} is not a known {what}{hint} (known: {', '.join(sorted(known)) or 'none'})"


class Registry:
    """Names of operators, and the places of their classes (`module:Class`)."""

    def __init__(self) -> None:
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
            raise ValueError(f"two operators are called {name!r}: {self._places[name]} and {place}")
        self._places[name] = place

    def operator_type(self, name: str) -> type[Operator[Any]]:
        """The class of a registered operator; its module is imported now.

        Raises:
            KeyError: the operator is unknown.
            ImportError, AttributeError, TypeError: its place does not have an operator class.
        """
        module, _, kind = self._places[name].partition(":")
        found: object = getattr(importlib.import_module(module), kind)
        if not (isinstance(found, type) and issubclass(found, Operator)):
            raise TypeError(f"{kind} is not a subclass of {Operator.__module__}.Operator")
        return found

    def build(self, spec: OperatorSpec, position: int) -> Operator[Any]:
        """The operator of a recipe's entry.

        Raises:
            RecipeError: with the position, the operator, the parameter and what was probably meant.
        """
        path = f"operators[{position}]"
        if spec.name not in self._places:
            raise RecipeError.at(f"{path}.name", _known("operator", spec.name, self.names))
        try:
            kind = self.operator_type(spec.name)
        except (ImportError, AttributeError, TypeError) as error:
            # A bug in an installed package, which the recipe's author needs to know.
            wrong = f"{spec.name} cannot be loaded from {self._places[spec.name]}: {error}"
            raise RecipeError.at(f"{path}.name", wrong) from error
        try:
            operator = kind(kind.params_type.model_validate(dict(spec.params)))
            operator.name = spec.name
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


def default_registry() -> Registry:
    """Tidemill's own operators, and those of installed packages.

    Raises:
        ValueError: two operators have the same name.
    """
    registry = own_registry()
    for plugin in entry_points(group=PLUGINS):
        registry.register(plugin.name, plugin.value)
    return registry


def own_registry() -> Registry:
    """Tidemill's own operators: `exact_dedup` is `ExactDedup` in the module of that name."""
    registry = Registry()
    for module in pkgutil.iter_modules(operators.__path__, f"{operators.__name__}."):
        name = module.name.rpartition(".")[2]
        registry.register(name, f"{module.name}:{name.title().replace('_', '')}")
    return registry
