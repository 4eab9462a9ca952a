"""Plugins: what other installed packages provide by entry points."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import TypeVar

from services.kit.errors import FieldViolation, InvalidArgumentError

T = TypeVar("T")


def plugin_names(group: str) -> list[str]:
    """Names of a group's entry points, sorted."""
    return sorted(entry.name for entry in entry_points(group=group))


def load_plugin(group: str, name: str, field: str) -> object:
    """What the entry point of this name refers to; its module is imported now.

    Args:
        group: such as `tidemill.sources`.
        name: of the entry point.
        field: of the request that holds the name, for the error.

    Raises:
        InvalidArgumentError: no installed package provides it, several provide it, or it cannot be imported.
    """
    found = [entry for entry in entry_points(group=group) if entry.name == name]
    if len(found) == 1:
        try:
            loaded: object = found[0].load()
        except (ImportError, AttributeError) as error:
            raise _refused(field, f"{name} cannot be loaded from {found[0].value}: {error}") from error
        return loaded
    if found:
        raise _refused(field, f"several packages provide {name!r}: {', '.join(entry.value for entry in found)}")
    known = plugin_names(group)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise _refused(
        field, f"no installed package provides {name!r} in {group}{hint} (installed: {', '.join(known) or 'none'})"
    )


def _refused(field: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field}: {why}.", reason="PLUGIN_UNUSABLE", violations=[FieldViolation(field, why)])
