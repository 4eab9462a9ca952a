"""The table of environment variables in `docs/operations.md`, from the settings classes."""

from __future__ import annotations

import types
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from docs.generate.tables import table
from gateway.settings import GatewaySettings
from services.cleaning.settings import CleaningSettings
from services.inference.settings import InferenceSettings
from services.ingest.settings import IngestSettings
from services.kit.config import ServiceSettings
from services.pipeline.settings import PipelineSettings
from services.telemetry.settings import TelemetrySettings
from services.training.settings import TrainingSettings

SETTINGS: dict[str, type[ServiceSettings]] = {
    "all": ServiceSettings,
    "gateway": GatewaySettings,
    "ingest": IngestSettings,
    "cleaning": CleaningSettings,
    "training": TrainingSettings,
    "inference": InferenceSettings,
    "pipeline": PipelineSettings,
    "telemetry": TelemetrySettings,
}
_TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}


def variables_table() -> str:
    """The table, without a line break at its end."""
    rows = []
    for process, settings in SETTINGS.items():
        shared = ServiceSettings.model_fields if settings is not ServiceSettings else {}
        for name, field in settings.model_fields.items():
            if name not in shared:
                variable, kind = f"`TIDEMILL_{name.upper()}`", _type(field.annotation)
                rows.append((variable, process, kind, _default(field), field.description or ""))
    return "\n".join(table(("variable", "read by", "type", "default", "meaning"), rows))


def _type(annotation: Any) -> str:
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_type(part) for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return " or ".join(f"`{choice}`" for choice in annotation)
    return _TYPES[annotation]


def _default(field: FieldInfo) -> str:
    # What a default factory finds differs from machine to machine; the description says what it is.
    if field.default_factory is not None:
        return "of the machine"
    if field.default is None:
        return "unset"
    default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    return f"`{default}`" if default else "empty"
