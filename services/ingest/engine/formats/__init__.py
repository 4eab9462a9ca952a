"""The formats of files that are read, one module each: how a file is split, and how a piece of it becomes a record.

A module has the name of its field in `SourceSpec.kind`, and its `FORMAT` is a `FileFormat` whose fields are those of
the field's message. To add a format, add its message to the proto, its module here, and its test.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from services.ingest.engine.file_format import AnyFormat


def names() -> list[str]:
    """All formats, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def make_format(name: str, options: Mapping[str, object]) -> AnyFormat:
    """A format with its options; lists, of JSON or of a message, become tuples, and defaults stand for empty texts."""
    found: type[AnyFormat] = import_module(f"{__name__}.{name}").FORMAT
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
        for key, value in options.items()
        if value
    }
    return found(**given)
