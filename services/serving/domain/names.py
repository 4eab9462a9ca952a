"""Resource names of models and their versions."""

from __future__ import annotations

from services.kit.errors import InvalidArgumentError


def model_name(model: str) -> str:
    """Resource name of a model."""
    return f"models/{model}"


def version_name(model: str, number: int) -> str:
    """Resource name of a version."""
    return f"models/{model}/versions/{number}"


def model_of(name: str) -> str:
    """The model in `models/{model}`.

    Raises:
        InvalidArgumentError: it is not a model name.
    """
    collection, _, model = name.partition("/")
    if collection != "models" or not model or "/" in model:
        raise InvalidArgumentError(
            f"{name!r} is not a model name; it must look like models/MODEL.", reason="INVALID_NAME"
        )
    return model
