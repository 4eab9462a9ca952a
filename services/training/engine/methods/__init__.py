"""The fine-tuning methods, one module each: which weights are trained, and how they are merged into a plain model.

A module has the name of its field in `TrainingSpec.method`. Its `METHOD` is a frozen dataclass with the same fields as
the proto's message. To add a method, add its message to the proto, its module here, and its test.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, make_dataclass
from importlib import import_module
from typing import Any

from pydantic import TypeAdapter, ValidationError

from services.kit.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError
from services.kit.plugins import load_plugin, plugin_names
from services.training.domain.training_spec import Method

PLUGINS = "tidemill.methods"
"""Group of the entry points by which other packages provide methods: name = "package.module:Class"."""


def names() -> list[str]:
    """Tidemill's own methods, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def method_type(name: str) -> type[Method]:
    """The class of a method, of Tidemill or of an installed package.

    Raises:
        InvalidArgumentError: the method is unknown, or its package cannot be used.
    """
    if name not in names() and name in plugin_names(PLUGINS):
        plugin: Any = load_plugin(PLUGINS, name, "spec.plugin.name")
        return plugin  # type: ignore[no-any-return]
    if name not in names():
        wrong = f"{name!r} is not a training method; the methods are {', '.join(names())}"
        violation = FieldViolation("spec.method", wrong)
        raise InvalidArgumentError(f"spec.method: {wrong}.", reason="METHOD_UNKNOWN", violations=[violation])
    found: type[Method] = import_module(f"{__name__}.{name}").METHOD
    return found


def make_method(name: str, options: Mapping[str, object]) -> Method:
    """A method with its options; lists (from JSON or a message) become tuples.

    Raises:
        InvalidArgumentError: the method is unknown.
    """
    frozen = {
        key: value if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
        for key, value in options.items()
    }
    return method_type(name)(**frozen)


def make_plugin(name: str, options: Mapping[str, object]) -> Method:
    """A method of another package, with its options converted to the types of its fields.

    Raises:
        InvalidArgumentError: no package provides it, or it does not accept the options.
    """
    found: Any = load_plugin(PLUGINS, name, "spec.plugin.name")
    if not is_dataclass(found) or name in names():
        why = f"{name} must be a frozen dataclass, and must not be named as a method of Tidemill's own"
        violation = FieldViolation("spec.plugin.name", why)
        raise InvalidArgumentError(f"spec.plugin.name: {why}.", reason="PLUGIN_UNUSABLE", violations=[violation])
    known = {item.name for item in fields(found)} - {"kind"}
    violations = [
        FieldViolation(f"spec.plugin.options.{option}", f"is not an option of {name} ({', '.join(sorted(known))})")
        for option in sorted(options.keys() - known)
    ]
    if not violations:
        try:
            method: Method = TypeAdapter(found).validate_python(dict(options))
            return method
        except ValidationError as error:
            violations = [
                FieldViolation(".".join(("spec.plugin.options", *map(str, each["loc"]))), each["msg"])
                for each in error.errors()
            ]
    text = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
    raise InvalidArgumentError(text, reason="INVALID_METHOD", violations=violations)


def stored_method(name: str, options: Mapping[str, object]) -> Method:
    """A stored method; if its package is not installed any more, it can be shown but not trained with."""
    try:
        return make_method(name, options)
    except InvalidArgumentError as error:
        why = error.message

    def adapt(_: Method, model: Any) -> Any:
        raise FailedPreconditionError(f"The method {name} is not installed any more: {why}", reason="METHOD_MISSING")

    held = {**options, "kind": name}
    missing: Any = make_dataclass("MissingMethod", list(held), frozen=True, namespace={"adapt": adapt, "merge": adapt})
    method: Method = missing(**held)
    return method
