"""The fine-tuning methods, one module each: which weights are trained, and how they become a plain model again.

A module has the name of its field in `TrainingSpec.method`, and its `METHOD` is a frozen dataclass whose fields are
those of the field's message. To add a method, add its message to the proto, its module here, and its test.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping
from importlib import import_module

from services.kit.errors import FieldViolation, InvalidArgumentError
from services.training.domain.training_spec import Method


def names() -> list[str]:
    """All methods, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def method_type(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        InvalidArgumentError: the method is unknown.
    """
    if name not in names():
        wrong = f"{name!r} is not a training method; the methods are {', '.join(names())}"
        violation = FieldViolation("spec.method", wrong)
        raise InvalidArgumentError(f"spec.method: {wrong}.", reason="METHOD_UNKNOWN", violations=[violation])
    found: type[Method] = import_module(f"{__name__}.{name}").METHOD
    return found


def make_method(name: str, options: Mapping[str, object]) -> Method:
    """A method with its options; lists, of JSON or of a message, become tuples.

    Raises:
        InvalidArgumentError: the method is unknown.
    """
    frozen = {
        key: value if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
        for key, value in options.items()
    }
    return method_type(name)(**frozen)
