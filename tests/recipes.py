"""Recipes in the short form of a pipeline file."""

from __future__ import annotations

from typing import Any

from services.cleaning.domain.recipe import OperatorSpec


def parse_operators(items: Any) -> list[OperatorSpec]:
    """Operators written `name` or `{name: {parameter: value}}`."""
    pairs = [(item, {}) if isinstance(item, str) else next(iter(item.items())) for item in items]
    return [OperatorSpec(name, params) for name, params in pairs]
