"""Names of models and their versions: as callers write them, and as Triton knows them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.kit.errors import InvalidArgumentError

CHAMPION = "champion"
"""The alias of the version that serves, in every route."""

_REFERENCE = re.compile(
    r"(?:models/)?(?P<model>[a-z0-9][a-z0-9-]{0,63})"
    r"(?:/versions/(?P<version>[1-9][0-9]{0,17}|[a-z][a-z0-9-]{0,31}))?"
)
_SERVER_MODEL = re.compile(r"([a-z0-9][a-z0-9-]{0,63})\.([1-9][0-9]{0,17})")


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


@dataclass(frozen=True, slots=True)
class ModelReference:
    """What a caller asks: a model, whose route chooses the version, or one version of it."""

    model: str
    version: str = ""
    """Number or alias; empty where the route chooses."""

    def __str__(self) -> str:
        return f"models/{self.model}/versions/{self.version}" if self.version else f"models/{self.model}"


def parse_reference(name: str) -> ModelReference | None:
    """Reads `MODEL`, `models/MODEL` and both with `/versions/VERSION`, a number or an alias; None for anything else."""
    found = _REFERENCE.fullmatch(name)
    return None if found is None else ModelReference(found["model"], found["version"] or "")


def reference_of(name: str) -> ModelReference:
    """As `parse_reference`.

    Raises:
        InvalidArgumentError: it is neither the name of a model nor of a version.
    """
    found = parse_reference(name)
    if found is None:
        raise InvalidArgumentError(
            f"{name!r} is not the name of a model; it must look like models/MODEL or models/MODEL/versions/VERSION, "
            "with a number or an alias such as champion.",
            reason="INVALID_NAME",
        )
    return found


def server_model(model: str, number: int) -> str:
    """What Triton calls a version: each is a Triton model of its own, and no model's name has a dot."""
    return f"{model}.{number}"


def parse_server_model(name: str) -> tuple[str, int] | None:
    """Model and number in a name of Triton's; None if it is not a version of ours."""
    found = _SERVER_MODEL.fullmatch(name)
    return None if found is None else (found[1], int(found[2]))


def shown(name: str) -> str:
    """Resource name of what Triton calls `name`, for messages."""
    found = parse_server_model(name)
    return model_name(name) if found is None else version_name(*found)


def facts(name: str) -> dict[str, str]:
    """Model and version of what Triton calls `name`, as the metadata of an error."""
    found = parse_server_model(name)
    if found is None:
        return {"model": model_name(name)}
    return {"model": model_name(found[0]), "model_version": version_name(*found)}
