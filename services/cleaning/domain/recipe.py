"""A recipe as its author writes it: operators by name, with parameters. The engine knows what they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.kit.errors import FieldViolation, InvalidArgumentError


class RecipeError(InvalidArgumentError):
    """A recipe that cannot be applied; its violations name position, operator and parameter."""

    default_reason = "INVALID_RECIPE"

    @classmethod
    def at(cls, path: str, description: str) -> RecipeError:
        """The error for one field, for example `operators[2].params.min_chars`."""
        return cls(f"{path}: {description}", violations=[FieldViolation(path, description)])


@dataclass(frozen=True, slots=True)
class OperatorSpec:
    """One operator of a recipe, by its registered name."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", {key: _plain(value) for key, value in self.params.items()})


def _plain(value: Any) -> Any:
    # JSON and protobuf's Struct have one kind of number; 40.0 and 40 are the same parameter.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return value
